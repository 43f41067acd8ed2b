"""Blocks of vLLM's own KV-cache tensors through a real store: every physical layout, byte for byte."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheTensor, MLAAttentionSpec, create_kv_cache_views
from vllm.v1.kv_cache_layout import KVCacheLayout

import memcache

LAYERS, BLOCKS = 3, 12
ATTENTION = FullAttentionSpec(block_size=32, num_kv_heads=2, head_size=32, dtype=torch.bfloat16)
LATENT = MLAAttentionSpec(block_size=16, num_kv_heads=1, head_size=576, head_size_v=0, dtype=torch.bfloat16)
PADDED = FullAttentionSpec(
    block_size=32, num_kv_heads=2, head_size=32, dtype=torch.bfloat16, page_size_padded=8192 + 512
)
CASES = [(layout, spec) for layout in KVCacheLayout for spec in (ATTENTION, LATENT)]
CASES += [(layout, PADDED) for layout in KVCacheLayout if layout.is_block_compact]
BYTE_ORDERS = {"HN": ("LBHNC", "LHBNC", "BLHNC", "BHLNC"), "NH": ("LBNHC", "BLNHC")}


def name_of(value: Any) -> str:
    if isinstance(value, KVCacheLayout):
        return value.name
    return {id(ATTENTION): "attention", id(LATENT): "mla", id(PADDED): "padded"}[id(value)]


@pytest.fixture(scope="module")
def store() -> Iterator[Any]:
    with memcache.Store(lend_bytes=64 << 20) as store:
        yield store


def allocate(layout: KVCacheLayout, spec: Any, seed: int) -> list[torch.Tensor]:
    """One tensor per layer, as vLLM makes them, filled with random bytes."""
    page = spec.page_size_bytes
    raw = torch.randint(
        -128, 128, (LAYERS * BLOCKS * page,), dtype=torch.int8, generator=torch.Generator().manual_seed(seed)
    )
    order = layout.value
    if order.index(0) < order.index(1):
        layer_stride, block_stride = BLOCKS * page, page
    else:
        layer_stride, block_stride = page, LAYERS * page
    if layout in (KVCacheLayout.LHBNC, KVCacheLayout.BHLNC):
        row = page // spec.num_heads
        block_stride = row if layout is KVCacheLayout.LHBNC else LAYERS * page
        layer_stride = BLOCKS * page if layout is KVCacheLayout.LHBNC else row
    names = [f"layer{number}" for number in range(LAYERS)]
    tensor = KVCacheTensor(raw.numel(), names, layer_stride=layer_stride, block_stride=block_stride)
    return create_kv_cache_views(raw, spec, BLOCKS, layout, tensor)


def content(tensors: list[torch.Tensor], block: int) -> list[bytes]:
    """What one block holds, layer by layer in logical order."""
    return [tensor[block].contiguous().view(torch.uint8).numpy().tobytes() for tensor in tensors]


def keys(label: str, count: int) -> Any:
    return np.frombuffer(b"".join(f"{label:>24}{number:08d}".encode() for number in range(count)), np.uint8).reshape(
        count, 32
    )


def register(store: Any, tensors: list[torch.Tensor]) -> Any:
    return store.register_layout(tensors, num_blocks=BLOCKS)


@pytest.mark.parametrize(("layout", "spec"), CASES, ids=name_of)
def test_blocks_come_back_into_other_blocks(store: Any, layout: KVCacheLayout, spec: Any) -> None:
    tensors = allocate(layout, spec, seed=1)
    registered = register(store, tensors)
    assert registered.block_bytes == LAYERS * spec.unpadded_page_size_bytes
    put, got = np.array([3, 1, 7, 10], np.int32), np.array([0, 5, 2, 11], np.int32)
    names = keys(f"{layout.name}{name_of(spec)}", 4)
    saved = [content(tensors, block) for block in put]
    untouched = {block: content(tensors, block) for block in range(BLOCKS) if block not in got}
    assert store.put_blocks(registered, names, put).tolist() == [memcache.PutStatus.STORED] * 4
    assert store.get_blocks(registered, names, got).tolist() == [memcache.GetStatus.HIT] * 4
    assert [content(tensors, block) for block in got] == saved
    assert {block: content(tensors, block) for block in untouched} == untouched


@pytest.mark.parametrize("order", BYTE_ORDERS)
def test_layouts_of_one_byte_order_read_each_other(store: Any, order: str) -> None:
    from memcache_connector.vllm.identity import byte_order

    first, *others = (KVCacheLayout[name] for name in BYTE_ORDERS[order])
    tensors = allocate(first, ATTENTION, seed=2)
    names = keys(f"order{order}", 2)
    assert store.put_blocks(register(store, tensors), names, [4, 9]).tolist() == [0, 0]
    for other in others:
        into = allocate(other, ATTENTION, seed=3)
        assert store.get_blocks(register(store, into), names, [6, 2]).tolist() == [0, 0]
        assert [content(into, block) for block in (6, 2)] == [content(tensors, block) for block in (4, 9)]
        assert byte_order(other.name, cache_of(ATTENTION)) == byte_order(first.name, cache_of(ATTENTION)) == order


def cache_of(spec: Any) -> Any:
    from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheGroupSpec

    return KVCacheConfig(BLOCKS, [], [KVCacheGroupSpec(["layer0"], spec)])


def test_with_one_head_there_is_one_byte_order() -> None:
    from memcache_connector.vllm.identity import byte_order

    assert {byte_order(layout.name, cache_of(LATENT)) for layout in KVCacheLayout} == {"any"}


def test_a_block_split_by_the_kernel_is_one_object(store: Any) -> None:
    tensors = allocate(KVCacheLayout.LBHNC, ATTENTION, seed=4)
    whole = register(store, tensors)
    halves = [tensor.view(torch.uint8).reshape(2 * BLOCKS, 1, 32, 128) for tensor in tensors]
    split = register(store, halves)
    assert (split.num_blocks, split.block_bytes) == (BLOCKS, whole.block_bytes)
    names = keys("kernel", 1)
    expected = content(tensors, 3)
    assert store.put_blocks(split, names, [3]).tolist() == [0]
    assert store.get_blocks(whole, names, [8]).tolist() == [0]
    assert content(tensors, 8) == expected
