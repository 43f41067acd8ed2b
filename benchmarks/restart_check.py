"""Kills a MetaService, then a LocalService, with a pool full of sealed objects, and measures how soon all are back.

    make restart-check BENCH_ARGS="--objects 100000 --nodes 4"

Every object is looked up after each restart, a sample is read and compared byte by byte. Exit code 1: one was lost,
wrong, or not back within ``--limit-s`` of its node's joining again.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import memcache

BATCH = 2000
LOOK_UP = 20_000
PATIENCE_S = 60.0
POOL = np.random.default_rng(1).integers(0, 256, 1 << 20, np.uint8)


class Program:
    """One `python -m memcache.*` process."""

    def __init__(self, module: str, *settings: str) -> None:
        arguments = [part for setting in settings for part in ("--set", setting)]
        command = [sys.executable, "-m", module, *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def expect(self, word: str) -> str:
        """The first line with this word in it."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if word in line:
                return line.strip()
        raise SystemExit(f"a process ended without saying {word!r}: {self.process.args}")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(10)


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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--objects", type=int, default=100_000)
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--bytes", type=int, default=4096, help="payload of each object")
    parser.add_argument("--sample", type=int, default=10_000, help="objects compared byte by byte")
    parser.add_argument("--limit-s", type=float, default=2.0)
    options = parser.parse_args()
    objects, length = options.objects, options.bytes
    each = objects // options.nodes * 3 // 2 + 1024
    files = [Path(f"/dev/shm/memcache-restart-check-{os.getpid()}-{index}") for index in range(options.nodes)]
    running: list[Program] = []

    def start(module: str, *settings: str) -> Program:
        running.append(Program(module, *settings))
        return running[-1]

    def start_node(index: int) -> Program:
        return start(
            "memcache.local",
            f"meta_address={address}",
            f"lend_bytes={each * (length + 192)}",
            f"holdings_slots={each}",
            f"persist={files[index]}",
            f"node_name=node{index}",
        )

    failures: list[str] = []
    try:
        meta = start("memcache.meta", "listen=127.0.0.1:0")
        address = meta.expect("serving on").split()[-1]
        locals_ = [start_node(index) for index in range(options.nodes)]
        for node in locals_:
            node.expect("joined")
        with memcache.Store(meta_address=address, timeout_ms=20_000) as store:
            started = time.monotonic()
            for first in range(0, objects, BATCH):
                part = range(first, min(first + BATCH, objects))
                statuses = store.put_batch([key(i) for i in part], [value(i, length) for i in part])
                assert (np.asarray(statuses) == memcache.PutStatus.STORED).all()
            took = time.monotonic() - started
            held = [(node["name"], node["objects"]) for node in nodes(store)]
            print(f"{objects} objects of {length} bytes put in {took:.1f} s; on the nodes: {held}")
            assert count_present(store, objects) == objects

            meta.kill()
            killed = time.monotonic()
            meta = start("memcache.meta", f"listen={address}")
            meta.expect("serving on")
            up = time.monotonic()
            wait_for("all nodes are back", lambda: len(nodes(store)) == options.nodes)
            joined = time.monotonic()
            wait_for("all objects are back", lambda: count_present(store, objects) == objects)
            ready = time.monotonic()
            wrong = check_sample(store, objects, length, options.sample)
            print(
                f"kill -9 of the MetaService: up again after {up - killed:.2f} s, the last node joined "
                f"{joined - up:.2f} s later, all {objects} readable {ready - joined:.3f} s after that; "
                f"{wrong} of {options.sample} sampled wrong"
            )
            if wrong or ready - joined > options.limit_s:
                failures.append("MetaService")

            mine = next(int(str(node["objects"])) for node in nodes(store) if node["name"] == "node0")
            locals_[0].kill()
            killed = time.monotonic()
            node = start_node(0)
            node.expect("joined")
            joined = time.monotonic()
            wait_for("all objects are back", lambda: count_present(store, objects) == objects)
            ready = time.monotonic()
            wrong = check_sample(store, objects, length, options.sample)
            print(
                f"kill -9 of a LocalService with {mine} objects: joined again after {joined - killed:.2f} s, "
                f"all readable {ready - joined:.3f} s after that; {wrong} of {options.sample} sampled wrong"
            )
            if wrong or ready - joined > options.limit_s:
                failures.append("LocalService")
    finally:
        for program in reversed(running):
            program.stop()
        for file in files:
            file.unlink(missing_ok=True)
    print("FAILED: " + ", ".join(failures) if failures else f"all back within {options.limit_s:g} s")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
