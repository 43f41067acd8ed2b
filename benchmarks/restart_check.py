"""Kills a MetaService, then a LocalService, with a pool full of sealed objects, and measures how soon all are back.

    make restart-check BENCH_ARGS="--objects 100000 --nodes 4"

Every object is looked up after each restart, a sample is read and compared byte by byte. Exit code 1: one was lost,
wrong, or not back within ``--limit-s`` of its node's joining again.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from programs import Program

import memcache

BATCH = 2000
LOOK_UP = 20_000
PATIENCE_S = 60.0
POOL = np.random.default_rng(1).integers(0, 256, 1 << 20, np.uint8)


def key(number: int) -> str:
    return f"restart-check/{number:08}"


def value(number: int, length: int) -> np.ndarray:
    start = number * 4099 % (len(POOL) - length)
    found = POOL[start : start + length].copy()
    found[:8] = np.frombuffer(number.to_bytes(8, "little"), np.uint8)
    return found


def count_present(store: memcache.Store, objects: int) -> int:
    try:
        batches = range(0, objects, LOOK_UP)
        return sum(
            int(np.count_nonzero(store.exist_batch([key(i) for i in range(first, min(first + LOOK_UP, objects))])))
            for first in batches
        )
    except memcache.MemCacheError:
        return 0


def wait_for(what: str, reached: Callable[[], bool]) -> float:
    """Seconds until then."""
    started = time.monotonic()
    while not reached():
        if time.monotonic() - started > PATIENCE_S:
            raise SystemExit(f"not within {PATIENCE_S:.0f} s: {what}")
        time.sleep(0.002)
    return time.monotonic() - started


def nodes(store: memcache.Store) -> list[dict[str, object]]:
    try:
        return list(store.status(500)["nodes"])
    except memcache.MemCacheError:
        return []


def check_sample(store: memcache.Store, objects: int, length: int, sample: int) -> int:
    """Wrong or missing objects among a sample."""
    numbers = np.random.default_rng(2).choice(objects, min(sample, objects), replace=False)
    wrong = 0
    for first in range(0, len(numbers), BATCH):
        part = [int(number) for number in numbers[first : first + BATCH]]
        targets = [np.zeros(length, np.uint8) for _ in part]
        statuses = store.get_into_batch([key(number) for number in part], targets)
        for number, status, target in zip(part, statuses, targets, strict=True):
            wrong += status != memcache.GetStatus.HIT or not np.array_equal(target, value(number, length))
    return wrong


class Pool:
    """A MetaService and its nodes, which keep their memory in files."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._files = [Path(f"/dev/shm/memcache-restart-check-{os.getpid()}-{i}") for i in range(options.nodes)]
        self._running = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as started:
            for file in self._files:
                started.callback(file.unlink, missing_ok=True)
            self._running = started
            self.meta = self.start_meta("127.0.0.1:0")
            self.address = self.meta.line.split()[-1]
            self.nodes = [self.start_node(index) for index in range(self._options.nodes)]
            self._running = started.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.close()

    def start_meta(self, listen: str) -> Program:
        return self._running.enter_context(Program("memcache.meta", "serving on", f"listen={listen}", quiet=True))

    def start_node(self, index: int) -> Program:
        each = self._options.objects // self._options.nodes * 3 // 2 + 1024
        settings = (
            f"meta_address={self.address}",
            f"lend_bytes={each * (self._options.bytes + 192)}",
            f"holdings_slots={each}",
            f"persist={self._files[index]}",
            f"node_name=node{index}",
        )
        return self._running.enter_context(Program("memcache.local", "joined", *settings, quiet=True))


def fill(store: memcache.Store, options: argparse.Namespace) -> None:
    started = time.monotonic()
    for first in range(0, options.objects, BATCH):
        part = range(first, min(first + BATCH, options.objects))
        statuses = store.put_batch([key(i) for i in part], [value(i, options.bytes) for i in part])
        assert (np.asarray(statuses) == memcache.PutStatus.STORED).all()
    took = time.monotonic() - started
    held = [(node["name"], node["objects"]) for node in nodes(store)]
    print(f"{options.objects} objects of {options.bytes} bytes put in {took:.1f} s; on the nodes: {held}")
    assert count_present(store, options.objects) == options.objects


def is_recovered(
    store: memcache.Store, options: argparse.Namespace, what: str, killed: Program, restart: Callable[[], object]
) -> bool:
    """Kills and restarts a service, and waits for all objects; whether they were back soon enough, and right."""
    killed.kill()
    dead = time.monotonic()
    restart()
    joined = time.monotonic()
    wait_for("all objects are back", lambda: count_present(store, options.objects) == options.objects)
    ready = time.monotonic()
    wrong = check_sample(store, options.objects, options.bytes, options.sample)
    print(
        f"kill -9 of {what}: started anew and all nodes joined after {joined - dead:.2f} s, all {options.objects} "
        f"readable {ready - joined:.3f} s after that; {wrong} of {options.sample} sampled wrong"
    )
    return wrong == 0 and ready - joined <= options.limit_s


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--objects", type=int, default=100_000)
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--bytes", type=int, default=4096, help="payload of each object")
    parser.add_argument("--sample", type=int, default=10_000, help="objects compared byte by byte")
    parser.add_argument("--limit-s", type=float, default=2.0)
    options = parser.parse_args()
    failures: list[str] = []
    with Pool(options) as pool, memcache.Store(meta_address=pool.address, timeout_ms=20_000) as store:
        fill(store, options)

        def restart_meta() -> None:
            pool.start_meta(pool.address)
            wait_for("all nodes are back", lambda: len(nodes(store)) == options.nodes)

        if not is_recovered(store, options, "the MetaService", pool.meta, restart_meta):
            failures.append("MetaService")
        held = next(node["objects"] for node in nodes(store) if node["name"] == "node0")
        what = f"a LocalService with {held} objects"
        if not is_recovered(store, options, what, pool.nodes[0], lambda: pool.start_node(0)):
            failures.append("LocalService")
    print("FAILED: " + ", ".join(failures) if failures else f"all back within {options.limit_s:g} s")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
