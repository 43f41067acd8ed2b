"""A worker's half alone: every order is answered, whatever becomes of the transfer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scripted import Answer

import memcache
from memcache_connector.vllm.config import ConnectorConfig
from memcache_connector.vllm.geometry import Geometry, Group, RankPlace
from memcache_connector.vllm.metadata import GroupBlocks, LoadPlan, MemCacheMetadata, SaveJob
from memcache_connector.vllm.worker import WorkerSide

HIT, MISS, STORED = int(memcache.GetStatus.HIT), int(memcache.GetStatus.MISS), int(memcache.PutStatus.STORED)
SILENT = int(memcache.GetStatus.UNAVAILABLE)
PREFIX = bytes(16)


class Layout:
    block_bytes = 100
    pieces_per_block = 1


class Transfers:
    """A store whose transfers end when and how the test says."""

    def __init__(self) -> None:
        self.under_way: list[Answer] = []
        self.error: memcache.MemCacheError | None = None
        self.closed = 0

    def register_layout(self, tensors: Any, num_blocks: int) -> Layout:
        if self.error is not None:
            raise self.error
        return Layout()

    def _start(self, layout: Any, keys: Any, block_ids: Any, timeout_ms: int) -> Answer:
        if self.error is not None:
            raise self.error
        assert len(keys) == len(block_ids)
        self.under_way.append(Answer())
        return self.under_way[-1]

    get_blocks_async = put_blocks_async = _start

    def close(self) -> None:
        self.closed += 1


def worker(store: Any, groups: int = 1, writes: bool = True) -> WorkerSide:
    kinds = tuple(Group(index, 32, 1, None, (f"layer{index}",)) for index in range(groups))
    geometry = Geometry(kinds, 32, 32, 16, 1, 1, False)
    side = WorkerSide(ConnectorConfig(), geometry, RankPlace(0, 0, writes), "HN", store)
    side.register({f"layer{index}": torch.zeros(16, 2, 32, 64) for index in range(groups)})
    return side


def blocks(*ids: int, group: int = 0) -> GroupBlocks:
    return GroupBlocks(group, tuple(bytes([block]) * 32 for block in ids), np.array(ids, np.int32))


def load(*parts: GroupBlocks) -> MemCacheMetadata:
    return MemCacheMetadata(key_prefix=PREFIX, loads=[LoadPlan("r", parts)])


def save(*parts: GroupBlocks) -> MemCacheMetadata:
    return MemCacheMetadata(key_prefix=PREFIX, saves=[SaveJob(7, parts)])


def statuses(*codes: int) -> Any:
    return np.array(codes, np.int32)


def test_a_load_is_reported_once_when_all_its_parts_are_there() -> None:
    store = Transfers()
    side = worker(store, groups=2)
    side.start_loads(load(blocks(1, 2), blocks(3, group=1)))
    store.under_way[0].resolve(statuses(HIT, HIT))
    assert side.poll(idle=False).finished == set()
    store.under_way[1].resolve(statuses(HIT))
    results = side.poll(idle=True)
    assert (results.finished, results.failed) == ({"r"}, set())
    assert side.poll(idle=False).finished == set()
    report = side.take_report()
    assert report is not None
    assert report.pool_answered
    assert not report.failed_loads
    assert side.counters.take().data == {"loaded_blocks": 3, "loaded_bytes": 300}  # type: ignore[union-attr]


def test_loads_of_requests_that_ended_are_cancelled_and_reported_when_they_have_stopped() -> None:
    store = Transfers()
    side = worker(store, groups=2)
    side.start_loads(load(blocks(1), blocks(2, group=1)))
    store.under_way[0].resolve(statuses(HIT))
    side.abandon_loads({"r", "never seen"})
    assert [answer.cancelled for answer in store.under_way] == [False, True]
    assert side.poll(idle=False).finished == set(), "reported while bytes may still land"
    store.under_way[1].resolve(statuses(int(memcache.GetStatus.CANCELLED)))
    assert side.poll(idle=False).finished == {"r"}
    report = side.take_report()
    assert report is not None
    assert not report.pool_failed


def test_with_one_group_the_bad_blocks_are_named() -> None:
    store = Transfers()
    side = worker(store)
    side.start_loads(load(blocks(4, 5, 6)))
    store.under_way[0].resolve(statuses(HIT, MISS, int(memcache.GetStatus.CORRUPT)))
    results = side.poll(idle=False)
    assert (results.finished, results.failed) == ({"r"}, set())
    assert side.take_bad_blocks() == {5, 6}
    assert side.take_bad_blocks() == set()
    assert side.take_report().failed_loads == {"r"}  # type: ignore[union-attr]


def test_with_several_groups_the_request_is() -> None:
    store = Transfers()
    side = worker(store, groups=2)
    side.start_loads(load(blocks(4), blocks(5, group=1)))
    store.under_way[0].resolve(statuses(HIT))
    store.under_way[1].resolve(statuses(MISS))
    assert side.poll(idle=False).failed == {"r"}
    assert side.take_bad_blocks() == set()


@pytest.mark.parametrize("outcome", [statuses(STORED), statuses(SILENT), memcache.Closed("closed")])
def test_a_save_job_is_reported_however_it_ends(outcome: Any) -> None:
    store = Transfers()
    side = worker(store)
    side.start_saves(save(blocks(1)))
    side.poll(idle=True)
    assert side.take_report() is None
    store.under_way[0].resolve(outcome)
    side.poll(idle=False)
    report = side.take_report()
    assert report is not None
    assert report.finished_saves == {7: 1}
    assert report.pool_failed is (outcome is not None and not np.array_equal(outcome, statuses(STORED)))


def test_what_the_store_does_not_accept_fails_at_once() -> None:
    store = Transfers()
    side = worker(store)
    store.error = memcache.InvalidArgument("block id 99")
    side.start_loads(load(blocks(4)))
    side.start_saves(save(blocks(5)))
    assert side.poll(idle=True).finished == {"r"}
    assert side.take_bad_blocks() == {4}
    assert side.take_report().finished_saves == {7: 1}  # type: ignore[union-attr]


def test_a_replica_leaves_saving_to_the_first_of_them() -> None:
    store = Transfers()
    side = worker(store, writes=False)
    side.start_saves(save(blocks(1)))
    side.start_loads(load(blocks(2)))
    assert len(store.under_way) == 1, "the load"
    assert side.take_report().finished_saves == {7: 1}  # type: ignore[union-attr]


def unopened() -> WorkerSide:
    return worker(None)


def refused() -> WorkerSide:
    store = Transfers()
    store.error = memcache.InvalidArgument("tensor 0 is not host memory")
    return worker(store)


def other_order() -> WorkerSide:
    side = worker(Transfers())
    side.register({"layer0": torch.zeros(16, 32, 2, 64).transpose(1, 2)})
    return side


def no_tensor() -> WorkerSide:
    side = worker(Transfers())
    side.register({"layer1": torch.zeros(16, 2, 32, 64)})
    return side


@pytest.mark.parametrize("make", [unopened, refused, other_order, no_tensor])
def test_a_worker_that_cannot_use_the_pool_says_so_and_answers_every_order(make: Any) -> None:
    side = make()
    side.start_loads(load(blocks(4)))
    side.start_saves(save(blocks(5)))
    assert side.poll(idle=True).finished == {"r"}
    assert side.take_bad_blocks() == {4}
    report = side.take_report()
    assert report is not None
    assert report.unusable
    assert report.finished_saves == {7: 1}
    side.close()


def test_reports_of_ranks_add_up() -> None:
    from collections import Counter

    from memcache_connector.vllm.metadata import MemCacheWorkerMetadata

    one = MemCacheWorkerMetadata(Counter({1: 1}), {"a"}, pool_answered=True)
    two = MemCacheWorkerMetadata(Counter({1: 1, 2: 1}), {"b"}, pool_failed=True, unusable="why")
    both = one.aggregate(two)
    assert both == MemCacheWorkerMetadata(Counter({1: 2, 2: 1}), {"a", "b"}, True, True, "why")
