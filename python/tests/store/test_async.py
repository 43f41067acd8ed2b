"""Puts and gets that nobody waits for: cancelled, too many, in flight across a fork, closed under them."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest

import memcache
from memcache import GetStatus, PutStatus

BLOCKS = 8
BLOCK_BYTES = 4 << 20


def cache(fill: int) -> list[npt.NDArray[np.uint8]]:
    """Four tensors of `BLOCKS` rows that make up blocks of `BLOCK_BYTES`."""
    return [np.full((BLOCKS, BLOCK_BYTES // 4), fill, np.uint8) for _ in range(4)]


KEYS = [b"block-%d" % block for block in range(BLOCKS)]
IDS = np.arange(BLOCKS)


@pytest.fixture
def pool(meta: memcache.MetaService) -> Iterator[memcache.Store]:
    with memcache.Store(meta_address=meta.address, lend_bytes="96MB") as store:
        yield store


def test_a_cancelled_get_leaves_the_memory_alone(pool: memcache.Store) -> None:
    source, target = cache(7), cache(0)
    layout = pool.register_layout(target)
    assert not pool.put_blocks(pool.register_layout(source), KEYS, IDS).any()
    seen = set()
    for turn in range(60):
        get = pool.get_blocks_async(layout, KEYS, IDS)
        time.sleep(turn % 12 * 0.0005)
        assert get.cancel()
        for tensor in target:
            tensor.fill(turn)
        statuses = get.result(timeout_ms=0)
        assert set(statuses) <= {GetStatus.HIT, GetStatus.CANCELLED}
        seen |= set(statuses)
        time.sleep(0.001)
        for tensor in target:
            assert (tensor == turn).all(), f"bytes landed after cancel, turn {turn}"
    assert seen == {GetStatus.HIT, GetStatus.CANCELLED}
    assert get.cancel(), "an ended operation is cancelled by doing nothing"


def test_a_cancelled_put_stores_nothing_and_gives_its_space_back(pool: memcache.Store) -> None:
    layout = pool.register_layout(cache(9))
    seen = set()
    # Each turn takes a third of the pool: space that was not given back would be missed soon.
    for turn in range(40):
        # Not exclusive: the one before may have been cancelled before the book told what it gives back.
        put = pool.put_blocks_async(layout, KEYS, IDS, exclusive=False)
        time.sleep(turn % 10 * 0.0006)
        assert put.cancel()
        statuses = put.result()
        assert set(statuses) <= {PutStatus.STORED, PutStatus.CANCELLED}
        assert list(pool.exist_batch(KEYS)) == [status == PutStatus.STORED for status in statuses]
        seen |= set(statuses)
        pool.remove_all()
    assert seen == {PutStatus.STORED, PutStatus.CANCELLED}


def test_a_store_says_when_too_much_is_under_way() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts and never answers
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with memcache.Store(meta_address=address) as store:
            layout = store.register_layout([np.zeros((1, 64), np.uint8)])
            gets: list[memcache.Completion[memcache.store.Statuses]] = []

            def start_many() -> None:
                while len(gets) < 100_000:
                    gets.append(store.get_blocks_async(layout, [b"k"], [0], timeout_ms=60_000))

            with pytest.raises(memcache.Busy, match=r"^\d+ puts and gets are under way, the limit"):
                start_many()
            assert all(get.cancel(timeout_ms=0) for get in gets)
            assert all(list(get.result(timeout_ms=0)) == [GetStatus.CANCELLED] for get in gets)
            again = store.get_blocks_async(layout, [b"k"], [0], timeout_ms=60_000)
        assert list(again.result(timeout_ms=0)) == [GetStatus.UNAVAILABLE], "close resolves what has not begun"


def test_a_fork_leaves_transfers_to_the_parent(pool: memcache.Store) -> None:
    target = cache(0)
    layout = pool.register_layout(target)
    assert not pool.put_blocks(pool.register_layout(cache(5)), KEYS, IDS).any()
    get = pool.get_blocks_async(layout, KEYS, IDS)
    child = os.fork()
    if child == 0:
        try:
            get.cancel(timeout_ms=1000)
            if not get.done():
                os._exit(1)  # neither an error nor an operation that had ended
        except memcache.ForkError:
            pass
        except BaseException:
            os._exit(2)
        os._exit(0)
    deadline = time.monotonic() + 20
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
        assert time.monotonic() < deadline, "the child hangs"
        time.sleep(0.01)
    assert os.waitstatus_to_exitcode(ended[1]) == 0
    assert list(get.result()) == [GetStatus.HIT] * BLOCKS
    assert all((tensor == 5).all() for tensor in target)


def test_sampling_readers_use_the_sums_of_sampling_writers(meta: memcache.MetaService, pool: memcache.Store) -> None:
    with memcache.Store(meta_address=meta.address, checksum="sampled", checksum_one_in=2) as sampled:
        keys = [b"k%d" % i for i in range(64)]
        sampled.put_batch(keys, [b"value"] * 64)
        assert sampled.get_batch(keys) == [b"value"] * 64
        assert pool.get_batch(keys) == [b"value"] * 64
    with pytest.raises(memcache.ConfigError, match="checksum_one_in"):
        memcache.Store(meta_address=meta.address, checksum="sampled", checksum_one_in=0)
