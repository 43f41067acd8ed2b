"""Replicas, repair and drains with LocalServices as processes that die or are emptied under load."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from conftest import Program, eventually, run_cli

import memcache
from memcache import GetStatus, PutStatus

VALUE_BYTES = 64 << 10


def value(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, VALUE_BYTES, np.uint8)


class Load:
    """Threads that put new keys and get all that were stored, until told to stop. Every miss and every wrong byte of a
    stored key is kept: nothing is removed and the pool is large enough, so there is no reason for one."""

    def __init__(self, address: str, protocol: str, replicas: int) -> None:
        self.store = memcache.Store(meta_address=address, protocol=protocol, replica_num=replicas, timeout_ms=10_000)
        self.stored: list[int] = []
        self.bad: list[str] = []
        self.gets = 0
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._put), *(threading.Thread(target=self._get) for _ in range(2))]

    def __enter__(self) -> Load:
        self.put(range(40))
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in self._threads)
        self.store.close()

    def put(self, numbers: range) -> None:
        keys = [f"key {number}" for number in numbers]
        statuses = self.store.put_batch(keys, [value(number) for number in numbers])
        self.stored += [number for number, status in zip(numbers, statuses, strict=True) if status == PutStatus.STORED]

    def _put(self) -> None:
        for first in range(40, 400, 4):
            if self._stop.wait(0.05):
                return
            self.put(range(first, first + 4))

    def _get(self) -> None:
        rng = np.random.default_rng(7)
        targets = [np.zeros(VALUE_BYTES, np.uint8) for _ in range(8)]
        while not self._stop.is_set():
            numbers = rng.choice(self.stored, 8, replace=False)
            self.check(numbers.tolist(), targets)

    def check(self, numbers: list[int], targets: list[np.ndarray]) -> None:
        statuses = self.store.get_into_batch([f"key {number}" for number in numbers], targets[: len(numbers)])
        for number, status, target in zip(numbers, statuses, targets, strict=False):
            self.gets += 1
            if status != GetStatus.HIT:
                self.bad.append(f"key {number}: {GetStatus(int(status)).name}")
            elif (target != value(number)).any():
                self.bad.append(f"key {number}: other bytes")

    def settled(self, replicas: int, nodes: int) -> bool:
        status = self.store.status()
        return len(status["nodes"]) == nodes and status["replicas"] == replicas * status["objects"]

    def check_all(self) -> None:
        targets = [np.zeros(VALUE_BYTES, np.uint8) for _ in range(8)]
        for first in range(0, len(self.stored), 8):
            self.check(self.stored[first : first + 8], targets)
        status = self.store.status()
        assert status["evicted_objects"] == 0, "the pool is too small for what this test says"
        assert self.bad == [], f"{len(self.bad)} of {self.gets} gets"


@pytest.mark.parametrize("protocol", ["host_shm", "host_tcp"])
def test_a_node_killed_under_load_costs_no_get_and_its_replicas_come_back(
    quick_meta: memcache.MetaService, quick_node: Callable[..., Program], protocol: str
) -> None:
    nodes = [quick_node() for _ in range(3)]
    with Load(quick_meta.address, protocol, replicas=2) as load:
        assert load.settled(2, 3)
        time.sleep(0.3)
        nodes[0].kill()
        assert eventually(lambda: load.settled(2, 2) and len(load.stored) > 80)
        before = load.gets
        assert eventually(lambda: load.gets > before + 100)
        assert load.store.status()["copied"] > 0
        load.check_all()
        stored = load.stored
    # The two that are left hold everything, each of them: with one more gone the copies are all there is.
    nodes[1].kill()
    last = Load(quick_meta.address, protocol, replicas=2)
    last.stored = stored
    last.check_all()
    last.store.close()


def test_a_node_drained_under_load_costs_no_get(
    quick_meta: memcache.MetaService, quick_node: Callable[..., Program]
) -> None:
    nodes = [quick_node(f"node_name=n{index}") for index in range(3)]
    with Load(quick_meta.address, "auto", replicas=1) as load:
        leaving = next(node for node in load.store.status()["nodes"] if node["name"] == "n0")
        assert leaving["objects"] > 0
        done = run_cli("drain", leaving["node"], "--json", "--wait-ms", "30000", meta=quick_meta)
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert (told["state"], told["in_pool"], told["objects"]) == ("drained", False, 0)
        assert nodes[0].process.wait(10) == 0
        assert load.settled(1, 2)
        before = load.gets
        assert eventually(lambda: load.gets > before + 200)
        load.check_all()
        assert load.store.status()["copied"] > 0


def test_a_node_told_to_stop_empties_itself_first(
    quick_meta: memcache.MetaService, quick_node: Callable[..., Program]
) -> None:
    one = quick_node("drain_ms=20000")
    with memcache.Store(meta_address=quick_meta.address) as store:
        store.put("k", b"kept")
        quick_node()
        one.process.terminate()
        assert one.process.wait(30) == 0
        assert store.get("k") == b"kept"
        assert len(store.status()["nodes"]) == 1


def test_preferred_nodes_and_replica_numbers(
    quick_meta: memcache.MetaService, quick_node: Callable[..., Program]
) -> None:
    for name in ("a", "b", "c"):
        quick_node(f"node_name={name}")
    with memcache.Store(meta_address=quick_meta.address) as store:
        nodes = {node["name"]: node["node"] for node in store.status()["nodes"]}
        store.put("k", b"v", replica_num=2, preferred_nodes=[nodes["c"], nodes["a"]])
        held = {node["name"]: node["objects"] for node in store.status()["nodes"]}
        assert held == {"a": 1, "b": 0, "c": 1}
        assert (store.status()["objects"], store.status()["replicas"]) == (1, 2)
        for bad in (0, 9):
            with pytest.raises(memcache.InvalidArgument, match=f"{bad} replicas; a key has 1 to 8"):
                store.put("x", b"v", replica_num=bad)
        with pytest.raises(memcache.InvalidArgument, match="first"):
            store.put("x", b"v", preferred_nodes=["first"])
        with pytest.raises(memcache.InvalidArgument, match="no such node"):
            store.drain("1234")
        with pytest.raises(memcache.InvalidArgument, match="now"):
            store.drain(nodes["a"], "now")
    with pytest.raises(memcache.ConfigError, match="replica_num"):
        memcache.Store(replica_num=9)


def test_info_tells_where_a_key_is(quick_meta: memcache.MetaService, quick_node: Callable[..., Program]) -> None:
    for name in ("a", "b"):
        quick_node(f"node_name={name}")
    with memcache.Store(meta_address=quick_meta.address) as store:
        store.put("k", b"12345", replica_num=2)
        found = store.info("k")
        assert (found["state"], found["payload_bytes"], found["replica_num"]) == ("readable", 5, 2)
        assert sorted(one["name"] for one in found["replicas"]) == ["a", "b"]
        assert store.info("x")["state"] == "absent"
    for arguments in (["k"], ["--hex", "6b"]):
        done = run_cli("info", *arguments, meta=quick_meta)
        assert done.returncode == 0
        assert "2 of 2 replicas" in done.stdout
    done = run_cli("info", "k", "--json", meta=quick_meta)
    assert json.loads(done.stdout)["replicas"][0]["leases"] == 0
    assert run_cli("info", "--hex", "xy", meta=quick_meta).returncode == 2
    done = run_cli("info", "x", "--json", meta=quick_meta)
    assert (done.returncode, json.loads(done.stdout)["state"]) == (3, "absent")
    done = run_cli("nodes", "--json", meta=quick_meta)
    assert {node["name"]: node["drain"] for node in json.loads(done.stdout)} == {"a": "no", "b": "no"}


def test_a_node_is_drained_into_a_full_pool_and_the_hottest_stay(
    quick_meta: memcache.MetaService, quick_node: Callable[..., Program]
) -> None:
    size = 1 << 20
    for name in ("a", "b", "c"):
        quick_node(f"node_name={name}", "lend_bytes=16MB")
    with memcache.Store(meta_address=quick_meta.address, timeout_ms=10_000) as store:
        nodes = {node["name"]: node["node"] for node in store.status()["nodes"]}
        # Fifteen fit on each under its high watermark.
        numbers = range(45)
        values = [np.full(size, number, np.uint8) for number in numbers]
        for number in numbers:
            node = nodes["abc"[number % 3]]
            assert store.put(f"key {number}", values[number], preferred_nodes=[node]) == PutStatus.STORED
        assert store.status()["evicted_objects"] == 0
        # Of all only these are read, again and again.
        hot = [number for number in numbers if number >= 24]
        target = np.zeros(size, np.uint8)
        for _ in range(3):
            for number in hot:
                assert store.get_into(f"key {number}", target) == size
            time.sleep(1.1)  # uses within a second count once
        assert eventually(lambda: store.status()["leases"] == 0)

        before = store.drain(nodes["a"], "look")
        assert (before["state"], before["objects"], before["moved_objects"]) == ("no", 15, 0)
        assert all(node["drain_progress"] is None for node in store.status()["nodes"])
        store.drain(nodes["a"])
        time.sleep(0.5)
        waiting = store.drain(nodes["a"], "look")
        assert (waiting["state"], waiting["objects"]) == ("draining", 15), "no node has room"
        told = next(node for node in store.status()["nodes"] if node["name"] == "a")["drain_progress"]
        assert (told["left_bytes"], told["dropped_objects"]) == (waiting["left_bytes"], 0)
        shown = run_cli("nodes", meta=quick_meta).stdout
        assert f"node {nodes['a']}: draining, 15 objects left (" in shown

        done = run_cli("drain", nodes["a"], "--wait-ms", "300", "--json", meta=quick_meta)
        assert (done.returncode, json.loads(done.stdout)["state"]) == (4, "draining")
        assert "MiB free" in json.loads(done.stdout)["why"]
        done = run_cli("drain", nodes["a"], "--evict", "--json", "--wait-ms", "30000", meta=quick_meta)
        assert (done.returncode, json.loads(done.stdout)["state"]) == (0, "drained")
        for number in hot:
            target[:] = 255
            assert store.get_into(f"key {number}", target) == size, number
            assert (target == number).all()
        status = store.status()
        assert len(status["nodes"]) == 2
        # What fits under the watermark of the two stays: the cold ones went, and no more of them than had to.
        assert len(hot) < status["objects"] <= 30
        assert status["objects"] + status["evicted_objects"] == 45
