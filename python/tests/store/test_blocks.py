"""Blocks of KV caches: byte-exact between layouts and block ids, in one process and between two, over each protocol."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import memcache
from memcache import GetStatus, PutStatus

LAYERS, BLOCKS, HEADS, STATES, CONTENT = 3, 12, 4, 16, 32
LAYOUTS = ["LBHNC", "LBNHC", "LHBNC", "BLHNC", "BLNHC", "BHLNC"]
LENGTHS = {"L": LAYERS, "B": BLOCKS, "H": HEADS, "N": STATES, "C": CONTENT}


def cache(order: str, seed: int, heads: int = HEADS) -> list[npt.NDArray[np.uint16]]:
    """One `[B, H, N, C]` view a layer of a cache whose memory has the axes in this order."""
    lengths = {**LENGTHS, "H": heads}
    raw = np.random.default_rng(seed).integers(0, 1 << 16, [lengths[axis] for axis in order], dtype=np.uint16)
    logical = raw.transpose([order.index(axis) for axis in "LBHNC"])
    return [logical[layer] for layer in range(LAYERS)]


def check_round_trip(
    writer: memcache.Store, reader: memcache.Store, source: list[npt.NDArray[Any]], target: list[npt.NDArray[Any]]
) -> None:
    """Puts blocks from one cache and gets them into other block ids of another; the rest of it stays untouched."""
    keys = [f"block-{i}".encode() for i in range(5)]
    puts, gets = np.array([1, 3, 5, 7, 9]), np.array([11, 0, 4, 2, 8], dtype=np.int32)
    before = [layer.copy() for layer in target]
    statuses = writer.put_blocks(writer.register_layout(source), keys, puts)
    assert list(statuses) == [PutStatus.STORED] * 5
    statuses = reader.get_blocks_async(reader.register_layout(target), keys, gets).result()
    assert list(statuses) == [GetStatus.HIT] * 5
    for layer, old, wanted in zip(target, before, source, strict=True):
        np.testing.assert_array_equal(layer[gets], wanted[puts])
        rest = np.setdiff1d(np.arange(BLOCKS), gets)
        np.testing.assert_array_equal(layer[rest], old[rest])


@pytest.mark.parametrize("order", LAYOUTS)
def test_every_layout_is_byte_exact(store: memcache.Store, order: str) -> None:
    check_round_trip(store, store, cache(order, 1), cache(order, 2))


@pytest.mark.parametrize(("one", "other"), [("LBHNC", "BHLNC"), ("LHBNC", "BLHNC"), ("LBNHC", "BLNHC")])
def test_layouts_of_one_byte_order_read_each_other(store: memcache.Store, one: str, other: str) -> None:
    source, target = cache(one, 1), cache(other, 2)
    assert store.register_layout(source).byte_order == store.register_layout(target).byte_order
    check_round_trip(store, store, source, target)


def test_the_block_outermost_layout_is_one_piece(store: memcache.Store) -> None:
    layout = store.register_layout(cache("BLHNC", 1))
    assert layout.pieces_per_block == 1
    assert layout.block_bytes == LAYERS * HEADS * STATES * CONTENT * 2
    assert layout.plan([0, 1, 2]) == 3
    assert store.plan_blocks(layout, ["a", "b"], [0, 1]) == 2


def test_a_latent_cache_with_one_head(store: memcache.Store) -> None:
    check_round_trip(store, store, cache("LBHNC", 1, heads=1), cache("LBHNC", 2, heads=1))


def test_padded_pages_and_split_blocks(store: memcache.Store) -> None:
    def padded(seed: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        raw = np.random.default_rng(seed).integers(0, 256, (BLOCKS, 128), dtype=np.uint8)
        return raw, raw[:, :100]

    (_, source), (raw, target) = padded(1), padded(2)
    padding = raw[:, 100:].copy()
    check_round_trip(store, store, [source], [target])
    np.testing.assert_array_equal(raw[:, 100:], padding)
    split = np.arange(BLOCKS * 2 * 6, dtype=np.uint8).reshape(BLOCKS * 2, 6)
    layout = store.register_layout([split], num_blocks=BLOCKS)
    assert layout.block_bytes == 12
    store.put_blocks(layout, ["split"], [3])
    assert store.get("split") == split[6:8].tobytes()


def test_tensors_as_numbers(store: memcache.Store) -> None:
    array = np.arange(40, dtype=np.uint16).reshape(5, 8)
    layout = store.register_layout([(array.ctypes.data, (5, 8), (16, 2), 2)])
    assert list(store.put_blocks(layout, ["n"], [4])) == [PutStatus.STORED]
    assert store.get("n") == array[4].tobytes()


def test_an_exclusive_put_leaves_present_keys_alone(store: memcache.Store) -> None:
    layout = store.register_layout(cache("LBHNC", 1))
    assert list(store.put_blocks(layout, ["a", "b"], [0, 1])) == [PutStatus.STORED] * 2
    assert list(store.put_blocks(layout, ["b", "c"], [5, 6])) == [PutStatus.PRESENT, PutStatus.STORED]


PEER = """
import sys
import numpy as np
sys.path.insert(0, sys.argv[3])
import memcache
from test_blocks import cache, check_round_trip
with memcache.Store(meta_address=sys.argv[1], protocol=sys.argv[2]) as store:
    for seed, order in enumerate(sys.argv[4].split(",")):
        target = cache(order, 100 + seed, heads=int(sys.argv[5]))
        layout = store.register_layout(target)
        keys = [f"{order}-{i}" for i in range(5)]
        ids = np.array([10, 2, 7, 0, 4])
        statuses = store.get_blocks(layout, keys, ids)
        assert not statuses.any(), (order, statuses)
        wanted = cache(order, seed, heads=int(sys.argv[5]))
        for layer, source in zip(target, wanted, strict=True):
            np.testing.assert_array_equal(layer[ids], source[[1, 3, 5, 7, 9]])
        back = [f"back-{order}-{i}" for i in range(5)]
        assert not store.put_blocks(layout, back, ids).any()
    moved = store.stats()[sys.argv[2] + "_bytes"]
    assert moved > 0, store.stats()
    print("moved", moved)
"""


@pytest.mark.integration
@pytest.mark.parametrize("protocol", ["host_shm", "host_tcp"])
@pytest.mark.parametrize("heads", [HEADS, 1])
def test_two_processes_exchange_every_layout(
    store: memcache.Store, meta: memcache.MetaService, run_python: Callable[..., str], protocol: str, heads: int
) -> None:
    for seed, order in enumerate(LAYOUTS):
        source = cache(order, seed, heads=heads)
        layout = store.register_layout(source)
        assert not store.put_blocks(layout, [f"{order}-{i}" for i in range(5)], [1, 3, 5, 7, 9]).any()
    output = run_python(PEER, meta.address, protocol, str(Path(__file__).parent), ",".join(LAYOUTS), str(heads))
    assert "moved" in output
    for seed, order in enumerate(LAYOUTS):
        target = cache(order, 200 + seed, heads=heads)
        back = [f"back-{order}-{i}" for i in range(5)]
        assert not store.get_blocks(store.register_layout(target), back, [0, 1, 2, 3, 4]).any()
        for layer, wanted in zip(target, cache(order, seed, heads=heads), strict=True):
            np.testing.assert_array_equal(layer[:5], wanted[[1, 3, 5, 7, 9]])
