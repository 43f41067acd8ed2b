"""Torch CPU tensors: dtypes the buffer protocol does not know, views, and devices the CPU cannot reach."""

from __future__ import annotations

import pytest

import memcache
from memcache import GetStatus, PutStatus

torch = pytest.importorskip("torch", reason="torch is not installed: `make setup` installs it")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float8_e4m3fn", "int8", "bool"])
def test_tensors_of_any_dtype(store: memcache.Store, dtype: str) -> None:
    source = torch.arange(48).remainder(2).reshape(4, 12).to(getattr(torch, dtype))
    target = torch.zeros_like(source)
    assert store.put_from("tensor", source) is PutStatus.STORED
    assert store.get_into("tensor", target) == source.numel() * source.element_size()
    assert torch.equal(target.view(torch.uint8), source.view(torch.uint8))


def test_a_non_contiguous_tensor_is_refused_by_its_strides(store: memcache.Store) -> None:
    with pytest.raises(memcache.InvalidArgument, match=r"strides \(1, 4\) is not contiguous"):
        store.put("t", torch.zeros(3, 4).t())
    assert not store.exist("t")


def test_a_tensor_the_cpu_cannot_reach_is_refused(store: memcache.Store) -> None:
    with pytest.raises(memcache.InvalidArgument, match="meta"):
        store.put("t", torch.zeros(4, device="meta"))
    with pytest.raises(memcache.InvalidArgument, match="meta"):
        store.register_layout([torch.zeros(4, 4, device="meta")])


def test_layers_of_one_storage_in_any_layout(store: memcache.Store) -> None:
    raw = torch.randn(2, 6, 4, 8, 16).to(torch.bfloat16)  # layers, blocks, heads, states, content
    outer = torch.randn(6, 2, 4, 8, 16).to(torch.bfloat16)  # blocks, layers, ...
    source = store.register_layout([raw[0], raw[1]])
    target = store.register_layout([outer[:, 0], outer[:, 1]])
    assert (source.pieces_per_block, target.pieces_per_block) == (2, 1)
    assert list(store.put_blocks(source, ["a", "b"], torch.tensor([1, 4]).numpy())) == [PutStatus.STORED] * 2
    assert list(store.get_blocks(target, ["b", "a"], [0, 5])) == [GetStatus.HIT] * 2
    assert torch.equal(outer[5], raw[:, 1])
    assert torch.equal(outer[0], raw[:, 4])


def test_a_layout_keeps_its_tensors(store: memcache.Store) -> None:
    layout = store.register_layout([torch.full((4, 1 << 16), 7, dtype=torch.uint8)])
    assert list(store.put_blocks(layout, ["kept"], [3])) == [PutStatus.STORED]
    assert store.get("kept") == b"\7" * (1 << 16)
