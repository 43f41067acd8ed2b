"""Put and get of KV blocks against memcpy, in one run: ``python benchmarks/bench_transfer.py [--quick] [--json FILE]``.

``--only shm`` leaves out TCP and the lookups and compares with the copy kernels themselves on one and two threads
(built with cargo where they are not). It adds blocks that are hot in the caches, and stores limited to one thread.

Three processes: a MetaService, a LocalService that lends the memory, and this one, which lends nothing, so that every
byte crosses a process border. See README.md beside this file for how to read the table.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from programs import Program

import memcache

KIB = 1 << 10
BLOCKS = 64
BATCHES = (1, 8, 32)
WARM_S = 1.5
GB = 1e9


@dataclass(frozen=True)
class Shape:
    """One block of a model: the length of each of its pieces in bytes."""

    name: str
    pieces: tuple[int, ...]

    @property
    def block_bytes(self) -> int:
        """Bytes of one block."""
        return sum(self.pieces)


SHAPES = (
    Shape("61x128K+61x16K", (128 * KIB, 16 * KIB) * 61),
    Shape("64x32K", (32 * KIB,) * 64),
    Shape("64x4K", (4 * KIB,) * 64),
)


@dataclass
class Row:
    """One line of the table: median and spread in GB/s."""

    what: str
    shape: str
    batch: int
    median: float
    low: float
    high: float
    to_memcpy: float
    to_pieces: float
    to_kernel_on_two: float | None = None


def cache_of(shape: Shape) -> list[npt.NDArray[np.uint8]]:
    """One tensor a piece, `[BLOCKS, piece bytes]`, every page touched."""
    return [np.full((BLOCKS, length), index % 251, np.uint8) for index, length in enumerate(shape.pieces)]


def warm_up(store: memcache.Store, seconds: float = WARM_S) -> None:
    """One put maps the pool; entering its pages into this process's tables then takes a while in the background."""
    store.put(b"warm", b"x")
    store.remove(b"warm")
    time.sleep(seconds)


def timed(call: Callable[[], None]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def memcpy_large(rounds: int) -> list[float]:
    """GB/s of one thread copying one 512 MiB run: the C library's non-temporal path."""
    source, target = np.ones(512 << 20, np.uint8), np.zeros(512 << 20, np.uint8)
    np.copyto(target, source)  # the first touch of the target's pages is not the copy
    return [source.nbytes / GB / timed(lambda: np.copyto(target, source)) for _ in range(rounds)]


def memcpy_pieces(shape: Shape, rounds: int) -> list[float]:
    """GB/s of one thread copying every piece of every block from one cache to another."""
    source, target = cache_of(shape), cache_of(shape)

    def run() -> None:
        for block in range(BLOCKS):
            for one, other in zip(target, source, strict=True):
                one[block] = other[block]

    return [BLOCKS * shape.block_bytes / GB / timed(run) for _ in range(rounds)]


def kernel_limits() -> dict[tuple[str, str], dict[str, float]]:
    """GB/s of the copy kernels alone, by shape and direction; empty where there is no cargo."""
    command = [
        "cargo",
        "run",
        "--quiet",
        "--release",
        "-p",
        "memcache-memory",
        "--example",
        "copy_kernels",
        "--",
        "limits",
    ]
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        show(f"no copy kernels to compare with: {error}")
        return {}
    limits = {}
    for entry in done.stdout.splitlines():
        _, shape, direction, *rest = entry.split()
        limits[shape, direction] = {name: float(rate) for name, rate in zip(rest[::2], rest[1::2], strict=True)}
    return limits


@dataclass
class Hot:
    """GB/s of one block moved again and again: whole calls, the copies inside them, and memcpy of the same pieces."""

    calls: dict[str, list[float]]
    copies: dict[str, list[float]]
    memcpy: float


def hot(store: memcache.Store, shape: Shape, rounds: int) -> Hot:
    """One block again and again. It is as hot as its shape allows: twice its bytes have to fit into the caches.

    A put needs a new key each time; its target in the pool is the space of the block removed before it. The copy alone
    is what the store counts as moving: handing the work to threads, the bytes and the trailer, but no message.
    """
    source, target = cache_of(shape), cache_of(shape)
    from_layout, to_layout = store.register_layout(source), store.register_layout(target)
    ids = np.zeros(1, np.int64)
    gigabytes = shape.block_bytes / GB
    turns = max(20, rounds * 10)

    def pieces() -> None:
        for one, other in zip(target, source, strict=True):
            one[0] = other[0]

    calls: dict[str, list[float]] = {"put": [], "get": []}
    copies: dict[str, list[float]] = {"put": [], "get": []}

    def moved(name: str, call: Callable[[], None]) -> None:
        before = store.stats()[f"{name}_move_ns"]
        calls[name].append(gigabytes / timed(call))
        copies[name].append(gigabytes / ((store.stats()[f"{name}_move_ns"] - before) / 1e9))

    memcpy = []
    for turn in range(turns):
        key = [b"hot-%d" % turn]
        moved("put", lambda k=key: check(store.put_blocks(from_layout, k, ids)))
        for _ in range(3):
            moved("get", lambda k=key: check(store.get_blocks(to_layout, k, ids)))
        for _ in range(3):
            memcpy.append(gigabytes / timed(pieces))
        store.remove(key[0])
    return Hot(calls, copies, statistics.median(memcpy))


def transfer(store: memcache.Store, shape: Shape, batch: int, rounds: int) -> tuple[list[float], list[float]]:
    """GB/s of each call: puts of `batch` blocks, then gets of them into another cache."""
    source = store.register_layout(cache_of(shape))
    target = store.register_layout(cache_of(shape))
    calls = [np.arange(start, start + batch) for start in range(0, BLOCKS, batch)]
    bytes_per_call = batch * shape.block_bytes / GB
    puts: list[float] = []
    gets: list[float] = []
    for turn in range(rounds + 1):  # the first round touches the pool's memory and is not counted
        store.remove_all()
        round_puts, round_gets = [], []
        for ids in calls:
            keys = [b"%d-%d" % (turn, block) for block in ids]
            round_puts.append(bytes_per_call / timed(lambda k=keys, i=ids: check(store.put_blocks(source, k, i))))
        for ids in calls:
            keys = [b"%d-%d" % (turn, block) for block in ids]
            round_gets.append(bytes_per_call / timed(lambda k=keys, i=ids: check(store.get_blocks(target, k, i))))
        if turn:
            puts += round_puts
            gets += round_gets
    return puts, gets


def check(statuses: npt.NDArray[np.int32]) -> None:
    if statuses.any():
        raise SystemExit(f"a transfer failed: {statuses}")


def call_cost(store: memcache.Store, shape: Shape, rounds: int) -> float:
    """Microseconds a block for everything a block call does before bytes move, at 64 blocks a call."""
    layout = store.register_layout(cache_of(shape))
    keys = [os.urandom(48) for _ in range(64)]
    ids = np.arange(64)
    costs = []
    for _ in range(rounds):
        costs.append(
            timed(lambda: [store.plan_blocks(layout, keys, ids) for _ in range(100)] and None) / 100 / 64 * 1e6
        )
    return statistics.median(costs)


def lookup_cost(store: memcache.Store, keys: int, rounds: int) -> tuple[float, float]:
    """Microseconds of one prefix lookup of present keys: median and 99th percentile."""
    names = [b"prefix-%d-%d" % (keys, index) for index in range(keys)]
    check(store.put_batch(names, [b"x"] * keys))
    costs = sorted(timed(lambda: exact(store.match_prefix(names), keys)) * 1e6 for _ in range(rounds))
    return statistics.median(costs), costs[int(len(costs) * 0.99)]


def exact(found: int, wanted: int) -> None:
    if found != wanted:
        raise SystemExit(f"{found} of {wanted} keys found")


def row(
    what: str, shape: Shape, batch: int, speeds: list[float], large: float, pieces: float, on_two: float | None = None
) -> Row:
    median = statistics.median(speeds)
    to_kernel = median / on_two if on_two else None
    return Row(what, shape.name, batch, median, min(speeds), max(speeds), median / large, median / pieces, to_kernel)


def hot_rows(found: Hot, shape: Shape, checksum: str, large: float) -> list[Row]:
    rows = []
    for name in ("put", "get"):
        for what, speeds in (("", found.calls[name]), (" copy", found.copies[name])):
            rows.append(row(f"hot {name}{what} crc={checksum}", shape, 1, speeds, large, found.memcpy))
            show(line(rows[-1]) + f" ({found.memcpy:.1f}, as hot)")
    return rows


def run_shm(quick: bool, only: str | None) -> dict[str, Any]:
    """Shared memory against what memory allows."""
    rounds = 2 if quick else 5
    rows: list[Row] = []
    limits = kernel_limits()
    with (
        Program("memcache.meta", "serving on", "listen=127.0.0.1:0") as meta,
        Program("memcache.local", "joined", f"meta_address={meta.line.split()[-1]}", "lend_bytes=1536MB"),
    ):
        address = meta.line.split()[-1]
        for shape in (one for one in SHAPES if only in (None, one.name)):
            large = statistics.median(memcpy_large(rounds))
            pieces = statistics.median(memcpy_pieces(shape, rounds))
            both = {name: limits.get((shape.name, name), {}) for name in ("gather", "scatter")}
            show(f"memcpy, one thread: one 512 MiB run {large:.1f} GB/s; the pieces of {shape.name} {pieces:.1f} GB/s")
            for name, rates in both.items():
                show(f"  copy kernels, {name}: " + ", ".join(f"{what} {rate:.1f}" for what, rate in rates.items()))
            for threads, checksum in ((0, "off"), (0, "sampled"), (0, "always"), (1, "off"), (1, "always")):
                with memcache.Store(
                    meta_address=address, protocol="host_shm", checksum=checksum, transfer_threads=threads
                ) as store:
                    warm_up(store)
                    for batch in BATCHES:
                        speeds = transfer(store, shape, batch, rounds)
                        for name, direction, found in zip(("put", "get"), both, speeds, strict=True):
                            on_two = both[direction].get("kernel_on_two")
                            what = f"{name} {'1 thread ' if threads else ''}crc={checksum}"
                            rows.append(row(what, shape, batch, found, large, pieces, on_two))
                            show(line(rows[-1]))
                    if checksum != "sampled" and not threads:
                        rows += hot_rows(hot(store, shape, rounds), shape, checksum, large)
                    store.remove_all()
    return {"rows": [asdict(one) for one in rows], "limits": {" ".join(key): value for key, value in limits.items()}}


def run(quick: bool) -> dict[str, Any]:
    """All measurements."""
    rounds = 2 if quick else 5
    rows: list[Row] = []
    with (
        Program("memcache.meta", "serving on", "listen=127.0.0.1:0") as meta,
        Program("memcache.local", "joined", f"meta_address={meta.line.split()[-1]}", "lend_bytes=1536MB"),
    ):
        address = meta.line.split()[-1]
        for shape in SHAPES:
            large = statistics.median(memcpy_large(rounds))
            pieces = statistics.median(memcpy_pieces(shape, rounds))
            show(f"memcpy, one thread: one 512 MiB run {large:.1f} GB/s; the pieces of {shape.name} {pieces:.1f} GB/s")
            for protocol, checksum in itertools.product(("host_shm", "host_tcp"), ("off", "always")):
                with memcache.Store(
                    meta_address=address, protocol=protocol, checksum=checksum, timeout_ms=60_000
                ) as store:
                    warm_up(store)
                    for batch in BATCHES:
                        puts, gets = transfer(store, shape, batch, rounds)
                        for name, speeds in (("put", puts), ("get", gets)):
                            what = f"{name} {protocol} crc={checksum}"
                            rows.append(row(what, shape, batch, speeds, large, pieces))
                            show(line(rows[-1]))
        with memcache.Store(meta_address=address, timeout_ms=60_000) as store:
            store.remove_all()
            cost = call_cost(store, SHAPES[0], rounds)
            show(f"block call before bytes move, 64 blocks of {len(SHAPES[0].pieces)} pieces: {cost:.2f} us a block")
            lookups = {count: lookup_cost(store, count, 500) for count in (1, 64, 512)}
            for count, (median, late) in lookups.items():
                show(f"match_prefix of {count} keys: p50 {median:.0f} us, p99 {late:.0f} us")
    return {
        "machine": {
            "cores": os.cpu_count(),
            "cpu": platform.processor() or platform.machine(),
            "load": os.getloadavg(),
        },
        "rows": [asdict(one) for one in rows],
        "call_us_per_block": cost,
        "match_prefix_us": {count: list(found) for count, found in lookups.items()},
    }


def line(one: Row) -> str:
    return (
        f"{one.what:<28}{one.shape:<16}{one.batch:>3} a call  {one.median:6.2f} GB/s "
        f"({one.low:.2f}-{one.high:.2f})  {one.to_memcpy:.2f} of large memcpy  {one.to_pieces:.2f} of piecewise"
        + (f"  {one.to_kernel_on_two:.2f} of the kernel on two" if one.to_kernel_on_two else "")
    )


def show(text: str) -> None:
    print(text, flush=True)


def main() -> None:
    """Runs the benchmark and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--only", choices=["shm"], help="shared memory alone, in more ways")
    parser.add_argument("--shape", choices=[shape.name for shape in SHAPES], help="with --only shm: this one alone")
    parser.add_argument("--json", metavar="FILE", help="also write the figures here")
    options = parser.parse_args()
    show(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; medians over calls (lowest-highest)")
    results = run_shm(options.quick, options.shape) if options.only == "shm" else run(options.quick)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
