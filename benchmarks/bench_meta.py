"""How fast the book answers, from Python: ``bench_meta.py [--quick] [--objects N,...] [--json FILE]``.

Three processes: a MetaService, a LocalService that lends the memory, and this one. A fourth makes the data load where a
row says so. See README.md beside this file for how to read the table.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import numpy.typing as npt
from bench_transfer import SHAPES, cache_of, check, show, warm_up
from programs import START_S, Program

import memcache

KEY_BYTES = 32
LOOKED_UP_KEYS = 1 << 19
"""Different keys that look-ups of one kind ask about before they begin again."""
FILL_KEYS = 4096
"""Keys of one call while the pool is filled."""
VALUE_4K = 4096
US = 1e6
WARM_S = 3.0


@dataclass
class Row:
    """One line of the table. Times in microseconds."""

    what: str
    objects: int
    keys: int
    p50: float
    p99: float
    calls_per_s: float
    keys_per_s: float


def percentile(sorted_values: list[float], part: float) -> float:
    return sorted_values[min(len(sorted_values) - 1, int(len(sorted_values) * part))]


def measure(what: str, objects: int, keys: int, calls: int, call: Callable[[int], object]) -> Row:
    """Times `calls` calls, one by one; the first tenth warms up and is not counted."""
    clock = time.perf_counter
    for number in range(calls // 10):
        call(number)
    waits = []
    started = before = clock()
    for number in range(calls):
        call(number)
        now = clock()
        waits.append((now - before) * US)
        before = now
    seconds = before - started
    waits.sort()
    found = Row(what, objects, keys, percentile(waits, 0.5), percentile(waits, 0.99), calls / seconds, 0)
    found.keys_per_s = found.calls_per_s * keys
    show(line(found))
    return found


def line(one: Row) -> str:
    return (
        f"{one.what:<42}{one.objects:>9} objects{one.keys:>5} a call  p50 {one.p50:7.1f} us  p99 {one.p99:7.1f} us  "
        f"{one.calls_per_s:8.0f} calls/s  {one.keys_per_s / 1e3:8.0f} k keys/s"
    )


def echo(listener: socket.socket) -> None:
    peer, _ = listener.accept()
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while got := peer.recv(4096):
        peer.sendall(got)


def loopback(calls: int) -> Row:
    """A bare exchange of 64 bytes between two Python processes: what the machine itself asks for a round trip."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        child = multiprocessing.get_context("fork").Process(target=echo, args=(listener,), daemon=True)
        child.start()
        with socket.create_connection(listener.getsockname()) as peer:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

            def once(_: int) -> None:
                peer.sendall(b"x" * 64)
                peer.recv(4096)

            found = measure("reference: TCP echo, Python both ends", 0, 1, calls, once)
        child.join(10)
    return found


def names_of(numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
    """Keys that look random: a mix of their number, `(count, KEY_BYTES)`."""
    mixed = numbers * np.uint64(0x9E3779B97F4A7C15)
    parts = [mixed ^ (mixed >> np.uint64(29)), mixed, numbers, ~mixed]
    return np.stack(parts, axis=1).view(np.uint8).reshape(len(numbers), KEY_BYTES)


def names(start: int, count: int) -> npt.NDArray[np.uint8]:
    """The keys of `count` numbers from `start` on."""
    return names_of(np.arange(start, start + count, dtype=np.uint64))


def fill(store: memcache.Store, have: int, want: int) -> None:
    """Puts one-byte objects until there are `want`."""
    started = time.perf_counter()
    for start in range(have, want, FILL_KEYS):
        count = min(FILL_KEYS, want - start)
        check(store.put_batch(names(start, count), [b"x"] * count))
    seconds = time.perf_counter() - started
    show(f"filled up to {want} objects: {(want - have) / seconds / 1e3:.0f} k objects/s at {FILL_KEYS} a call")


def batches(objects: int, keys: int, count: int) -> list[list[bytes]]:
    """`count` lists of random present keys, as an engine hands them over."""
    wanted = np.random.default_rng(keys).integers(objects, size=count * keys, dtype=np.uint64)
    packed = names_of(wanted).tobytes()
    each = [packed[at : at + KEY_BYTES] for at in range(0, len(packed), KEY_BYTES)]
    return [each[at : at + keys] for at in range(0, len(each), keys)]


def look_up(store: memcache.Store, objects: int, calls: int) -> list[Row]:
    rows = []
    for keys in (1, 64, 512):
        wanted = batches(objects, keys, LOOKED_UP_KEYS // keys)
        turn = len(wanted)
        rows.append(measure("exist", objects, keys, calls, lambda n, w=wanted, t=turn: store.exist_batch(w[n % t])))
        rows.append(
            measure("match_prefix", objects, keys, calls, lambda n, w=wanted, t=turn: store.match_prefix(w[n % t]))
        )
    key = batches(objects, 1, 1)[0][0]
    rows.append(measure("exist, single form", objects, 1, calls, lambda _: store.exist(key)))
    return rows


def reserve_and_seal(store: memcache.Store, objects: int, calls: int) -> Row:
    """Whole puts of one-byte objects, 64 a call: reserve, write, seal. What they put is removed again."""
    keys, total = 64, calls + calls // 10
    fresh = [[b"fresh-%d-%d-%020d" % (objects, call, key) for key in range(keys)] for call in range(total)]
    values = [b"x"] * keys
    order = iter(fresh)
    found, parts = with_parts(
        store,
        "put",
        lambda: measure(
            "put of 1 byte: reserve, write, seal",
            objects,
            keys,
            calls,
            lambda _: check(store.put_batch(next(order), values)),
        ),
    )
    both = parts["put_reserve"] + parts["put_seal"]
    show(f"  means, us an object: {listed(parts)}; reserve and seal alone: {1e3 / both:.0f} k objects/s")
    for some in fresh:
        store.remove_batch(some)
    return found


def listed(parts: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in parts.items())


def small_objects(store: memcache.Store, calls: int) -> list[Row]:
    """4 KiB, one object a call."""
    total = calls + calls // 10
    value = np.full(VALUE_4K, 7, np.uint8)
    target = np.zeros(VALUE_4K, np.uint8)
    keys = [b"small-%020d" % number for number in range(total)]
    order = iter(keys)
    put, parts = with_parts(
        store, "put", lambda: measure("put of 4 KiB", total, 1, calls, lambda _: store.put(next(order), value))
    )
    show(f"  means, us: {listed(parts)}")
    order = iter(keys)
    get, parts = with_parts(
        store,
        "get",
        lambda: measure("get_into of 4 KiB", total, 1, calls, lambda _: store.get_into(next(order), target)),
    )
    show(f"  means, us: {listed(parts)}")
    if (target != 7).any():
        raise SystemExit("wrong bytes")
    for start in range(0, total, FILL_KEYS):
        store.remove_batch(keys[start : start + FILL_KEYS])
    return [put, get]


def with_parts(store: memcache.Store, kind: str, run: Callable[[], Row]) -> tuple[Row, dict[str, float]]:
    """Runs something, and says how many microseconds an object each part of it took in Rust."""
    before = store.stats()
    found = run()
    after = store.stats()
    done = after[f"{kind}_objects"] - before[f"{kind}_objects"]
    names = [name for name in after if name.startswith(kind) and name.endswith("_ns")]
    return found, {name.removesuffix("_ns"): (after[name] - before[name]) / done / 1e3 for name in names}


def one_block(store: memcache.Store, calls: int) -> Row:
    """A get of one block of 122 pieces, with where its time goes."""
    shape = SHAPES[0]
    source, target = store.register_layout(cache_of(shape)), store.register_layout(cache_of(shape))
    keys = [[b"block-%d" % number] for number in range(64)]
    ids = [np.array([number]) for number in range(64)]
    for key, number in zip(keys, ids, strict=True):
        check(store.put_blocks(source, key, number))
    parse = measure(
        "  its arguments alone", 64, 1, calls, lambda n: store.plan_blocks(target, keys[n % 64], ids[n % 64])
    )
    waits, moves, locates = [], [], []
    before = store.stats()
    for number in range(calls + calls // 10):
        started = time.perf_counter()
        statuses = store.get_blocks(target, keys[number % 64], ids[number % 64])
        wait = (time.perf_counter() - started) * US
        check(statuses)
        after = store.stats()
        if number >= calls // 10:
            waits.append(wait)
            moves.append((after["get_move_ns"] - before["get_move_ns"]) / 1e3)
            locates.append((after["get_locate_ns"] - before["get_locate_ns"]) / 1e3)
        before = after
    beside = sorted(wait - move for wait, move in zip(waits, moves, strict=True))
    for some in (waits, moves, locates):
        some.sort()
    rate = US / statistics.fmean(waits)
    found = Row(
        f"get of one block, {len(shape.pieces)} pieces",
        64,
        1,
        percentile(waits, 0.5),
        percentile(waits, 0.99),
        rate,
        rate,
    )
    show(line(found))
    show(
        f"  p50 of its parts, us: arguments {parse.p50:.1f}, locate round trip {percentile(locates, 0.5):.1f} "
        f"(p99 {percentile(locates, 0.99):.1f}), copy with verification {percentile(moves, 0.5):.1f}; all but the copy "
        f"{percentile(beside, 0.5):.1f} (p99 {percentile(beside, 0.99):.1f}); the release goes with the next call"
    )
    for key in keys:
        store.remove_batch(key)
    return found


def make_load(address: str, ready: Connection) -> None:
    """Puts and gets blocks without a pause, 8 a call, until killed."""
    shape = SHAPES[0]
    with memcache.Store(meta_address=address, protocol="host_shm") as store:
        source, target = store.register_layout(cache_of(shape)), store.register_layout(cache_of(shape))
        ids = np.arange(8)
        turn = 0
        while True:
            keys = [b"load-%d-%d" % (turn, number) for number in range(8)]
            store.put_blocks(source, keys, ids)
            for _ in range(8):
                store.get_blocks(target, keys, ids)
            store.remove_batch(keys)
            turn += 1
            if turn == 1:
                ready.send(True)


@contextmanager
def load(address: str) -> Iterator[None]:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    child = context.Process(target=make_load, args=(address, there), daemon=True)
    child.start()
    if not here.poll(START_S):
        raise SystemExit("the load never started")
    time.sleep(WARM_S)
    try:
        yield
    finally:
        child.kill()
        child.join(10)


def under_load(store: memcache.Store, address: str, objects: int, calls: int) -> list[Row]:
    wanted = batches(objects, 512, 1024)
    one = batches(objects, 1, 1)[0]
    with load(address):
        return [
            measure(
                "match_prefix beside a load of blocks",
                objects,
                512,
                calls,
                lambda n: store.match_prefix(wanted[n % 1024]),
            ),
            measure("exist beside a load of blocks", objects, 1, calls, lambda _: store.exist_batch(one)),
        ]


def resident_bytes(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def run(counts: list[int], calls: int) -> dict[str, Any]:
    """All measurements."""
    rows = [loopback(calls)]
    lent = max(counts) * 128 + (1536 << 20)
    with (
        Program("memcache.meta", "serving on", "listen=127.0.0.1:0") as meta,
        Program("memcache.local", "joined", f"meta_address={meta.line.split()[-1]}", f"lend_bytes={lent}"),
        memcache.Store(meta_address=meta.line.split()[-1], protocol="host_shm", timeout_ms=60_000) as store,
    ):
        address = meta.line.split()[-1]
        empty = resident_bytes(meta.process.pid)
        warm_up(store, WARM_S)
        rows += small_objects(store, calls)
        rows.append(one_block(store, max(calls // 10, 100)))
        have = 0
        for objects in counts:
            fill(store, have, objects)
            have = objects
            each = (resident_bytes(meta.process.pid) - empty) / objects
            show(f"{objects} objects of {KEY_BYTES}-byte keys: {each:.0f} bytes of the MetaService each")
            rows += look_up(store, objects, calls)
            rows.append(reserve_and_seal(store, objects, max(calls // 10, 100)))
            rows += under_load(store, address, objects, calls)
    return {"cores": os.cpu_count(), "load": os.getloadavg(), "rows": [asdict(one) for one in rows]}


def main() -> None:
    """Runs the benchmark and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer calls")
    parser.add_argument("--objects", default="10000,1000000", help="numbers of objects, ascending")
    parser.add_argument("--json", metavar="FILE", help="also write the figures here")
    options = parser.parse_args()
    show(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    results = run([int(count) for count in options.objects.split(",")], 2_000 if options.quick else 10_000)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
