"""Times one system in this process and prints JSON lines: `python -m peers.measure SYSTEM TASK [options]`."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .base import Peer
from .processes import PeerError, Services
from .shapes import KIB, SHAPES, Cache, Shape, copy_piecewise, one_run

GB = 1e9
BATCH_S = 8.0
SYSTEMS = {
    "memcache:shm": "memcache_peer.MemcacheShm",
    "memcache:shm,crc=off": "memcache_peer.MemcacheShmNoSums",
    "memcache:tcp": "memcache_peer.MemcacheTcp",
    "memcache:tcp,crc=off": "memcache_peer.MemcacheTcpNoSums",
    "mooncake:tcp": "mooncake_peer.MooncakePeer",
    "redis:unix": "redis_peer.RedisPeer",
    "nixl:ucx": "nixl_peer.NixlPeer",
}


def system(name: str) -> type[Peer]:
    """The class behind a system's name; its packages are imported only now."""
    module, _, kind = SYSTEMS[name].partition(".")
    return getattr(__import__(f"peers.{module}", fromlist=[kind]), kind)


def say(**fields: Any) -> None:
    """One result."""
    print(json.dumps(fields), flush=True)


def timed(call: Callable[..., object], *arguments: Any) -> float:
    """Seconds a call took."""
    started = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - started


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, extremes and 99th percentile."""
    ordered = sorted(values)
    late = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    return {"median": statistics.median(ordered), "low": ordered[0], "high": ordered[-1], "p99": late}


def memcpy(shape: Shape, source: Cache, target: Cache) -> dict[str, float]:
    """GB/s of one thread: one run of 256 MiB, and the shape's pieces."""
    one, two = np.ones(256 << 20, np.uint8), np.zeros(256 << 20, np.uint8)
    large = [one.nbytes / GB / timed(np.copyto, two, one) for _ in range(3)]

    def copy_all() -> None:
        for block in range(shape.blocks):
            copy_piecewise(target, source, block)

    piecewise = [shape.blocks * shape.block_bytes / GB / timed(copy_all) for _ in range(3)]
    return {"large": max(large), "pieces": statistics.median(piecewise)}


def blocks_task(services: Services, peer: Peer, shape: Shape, batches: Sequence[int], rounds: int) -> None:
    """Puts and gets of all blocks of a cache, `batch` a call. The first pass is checked and not counted."""
    source, target = Cache(shape, seed=7), Cache(shape)
    peer.use(source, target)
    say(what="memcpy", shape=shape.name, **memcpy(shape, source, target))
    for batch in (batch for batch in batches if batch <= shape.blocks):
        calls = [list(range(start, start + batch)) for start in range(0, shape.blocks - batch + 1, batch)]
        moved = batch * shape.block_bytes
        seconds: dict[str, list[float]] = {"put": [], "get": []}
        cpu = {"put": 0.0, "get": 0.0}
        until = float("inf")
        for turn in range(rounds + 1):
            if time.monotonic() > until:
                break  # a system this slow is known well enough
            if turn == 1:
                until = time.monotonic() + BATCH_S
            peer.clear()
            keys = [[f"{batch}-{turn}-{block}" for block in call] for call in calls]
            target.clear()
            for name, move in (("put", peer.put), ("get", peer.get)):
                before = services.cpu_s()
                times = [timed(move, k, c) for k, c in zip(keys, calls, strict=True)]
                if turn:
                    seconds[name] += times
                    cpu[name] += services.cpu_s() - before
            if not turn:
                covered = [block for call in calls for block in call]
                if not all(
                    np.array_equal(a[:, covered], b[:, covered]) for a, b in zip(source.runs, target.runs, strict=True)
                ):
                    raise PeerError("the blocks came back changed")
        for name, times in seconds.items():
            speeds = spread([moved / GB / one for one in times])
            micros = spread([one * 1e6 for one in times])
            per_gb = cpu[name] / (len(times) * moved / GB)
            say(what=name, shape=shape.name, batch=batch, gbs=speeds, us=micros, cpu_s_per_gb=per_gb)
    say(what="memcpy", shape=shape.name, **memcpy(shape, source, target))


def small_task(peer: Peer, calls: int) -> None:
    """4 KiB objects, one a call: calls a second; and existence of keys, a batch a call."""
    shape = one_run(4 * KIB, 1024)
    source, target = Cache(shape, seed=3), Cache(shape)
    peer.use(source, target)
    names = [[f"s{index}"] for index in range(calls)]
    blocks = [[index % shape.blocks] for index in range(calls)]
    for name, move in (("put", peer.put), ("get", peer.get)):
        times = [timed(move, k, b) for k, b in zip(names, blocks, strict=True)]
        say(
            what=f"small {name}", shape="1x4K", calls_per_s=len(times) / sum(times), us=spread([t * 1e6 for t in times])
        )
    if not peer.has_keys:
        return
    for batch in (1, 64, 512):
        keys = [f"s{index}" for index in range(batch)]
        times = [timed(peer.exist, keys) for _ in range(max(200, 4000 // batch))]
        say(what="exist", batch=batch, keys_per_s=batch / statistics.median(times), us=spread([t * 1e6 for t in times]))


def growth_task(peer: Peer, rounds: int) -> None:
    """What a call costs as the number of its objects grows: 1 to 1,024 objects of 16 KiB in one piece."""
    shape = one_run(16 * KIB, 1024)
    source, target = Cache(shape, seed=5), Cache(shape)
    peer.use(source, target)
    count = 1
    while count <= shape.blocks:
        times: dict[str, list[float]] = {"put": [], "get": []}
        for turn in range(rounds + 1):  # the first touches memory and is not counted
            peer.clear()
            keys, blocks = [f"g{turn}-{index}" for index in range(count)], list(range(count))
            put = timed(peer.put, keys, blocks)
            get = timed(peer.get, keys, blocks)
            if turn:
                times["put"].append(put)
                times["get"].append(get)
        for name, seconds in times.items():
            say(what=f"growth {name}", objects=count, us=spread([one * 1e6 for one in seconds]))
        count *= 4


def fill_task(peer: Peer, shape: Shape) -> None:
    """Puts the blocks that readers then get."""
    source = Cache(shape, seed=7)
    peer.use(source, Cache(shape))
    for start in range(0, shape.blocks, 8):
        blocks = list(range(start, min(start + 8, shape.blocks)))
        peer.put([f"r{block}" for block in blocks], blocks)
    say(what="filled", address=peer.address)
    sys.stdin.read()


def read_task(peer: Peer, shape: Shape, seconds: float) -> None:
    """Gets 8 blocks a call for a while, after a line on the input; one reader of several."""
    target = Cache(shape)
    peer.use(target, target)
    calls = [list(range(start, min(start + 8, shape.blocks))) for start in range(0, shape.blocks, 8)]
    for blocks in calls:
        peer.get([f"r{block}" for block in blocks], blocks)
    say(what="ready")
    sys.stdin.readline()
    moved, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        for blocks in calls:
            peer.get([f"r{block}" for block in blocks], blocks)
            moved += len(blocks) * shape.block_bytes
    say(what="read", gbs=moved / GB / (time.perf_counter() - started))


def main() -> None:
    """Starts the system and runs one task."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("system", choices=SYSTEMS)
    parser.add_argument("task", choices=("blocks", "small", "growth", "fill", "read"))
    parser.add_argument("--shape", choices=SHAPES, default="61x128K+61x16K")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--address", help="join the services of another process")
    options = parser.parse_args()
    shape = SHAPES[options.shape]
    pool = max(1 << 30, 3 * shape.blocks * shape.block_bytes)
    with Services() as services:
        try:
            peer = system(options.system)(services, pool, options.address)
            if options.task == "blocks":
                blocks_task(services, peer, shape, options.batches, options.rounds)
            elif options.task == "small":
                small_task(peer, 4000)
            elif options.task == "growth":
                growth_task(peer, options.rounds)
            elif options.task == "fill":
                fill_task(peer, shape)
            else:
                read_task(peer, shape, options.seconds)
            peer.close()
        except PeerError as error:
            say(what="cannot", why=str(error)[:400])
    # Some clients leave threads behind that would keep the process.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
