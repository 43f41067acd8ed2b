"""Services as processes: start, stop, kill, restart. Nothing is lost that was promised, nothing hangs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from conftest import Program, eventually

import memcache
from memcache import GetStatus, PutStatus

pytestmark = pytest.mark.integration


def test_the_meta_program_serves_and_stops_on_sigterm(program: Callable[..., Program]) -> None:
    one = program("memcache.meta", "listen=127.0.0.1:0")
    address = one.expect("serving on").split()[-1]
    with memcache.Store(meta_address=address, lend_bytes="8MB") as store:
        assert store.put("k", b"v") is PutStatus.STORED
        one.process.send_signal(signal.SIGTERM)  # with a session open
        assert one.process.wait(10) == 0
        with pytest.raises((memcache.Unavailable, memcache.Timeout)):
            store.put("l", b"v", timeout_ms=1000)


def test_the_meta_program_names_a_port_in_use(meta: memcache.MetaService) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "memcache.meta", "--set", f"listen={meta.address}"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode != 0
    assert meta.address in done.stderr
    assert "in use" in done.stderr


def test_a_pool_outlives_its_engines(meta: memcache.MetaService, node: Callable[..., Program]) -> None:
    node()
    with memcache.Store(meta_address=meta.address) as writer:
        assert writer.put("k", b"kept") is PutStatus.STORED
    with memcache.Store(meta_address=meta.address) as reader:
        assert reader.get("k") == b"kept"
        assert reader.stats()["host_shm_bytes"] == 4


def test_a_standalone_node_stops_on_sigterm_and_leaves_the_pool(
    meta: memcache.MetaService, node: Callable[..., Program]
) -> None:
    one = node()
    with memcache.Store(meta_address=meta.address) as store:
        store.put("k", b"v")
        one.process.terminate()
        assert one.process.wait(10) == 0
        assert store.get("k") is None
        assert store.status()["nodes"] == []
        with pytest.raises(memcache.MemCacheError):
            store.put("k", b"v")


@pytest.mark.parametrize("protocol", ["host_shm", "host_tcp"])
def test_a_node_killed_while_others_read_gives_misses_never_wrong_bytes(
    meta: memcache.MetaService, node: Callable[..., Program], protocol: str
) -> None:
    one = node()
    keys = [f"k{i}" for i in range(16)]
    values = [np.full(1 << 20, i, np.uint8) for i in range(16)]
    seen: set[int] = set()
    wrong: list[str] = []
    with memcache.Store(meta_address=meta.address, protocol=protocol, timeout_ms=3000) as store:
        assert not store.put_batch(keys, values).any()
        stop = threading.Event()

        def read() -> None:
            targets = [np.zeros(1 << 20, np.uint8) for _ in keys]
            while not stop.is_set():
                statuses = store.get_into_batch(keys, targets)
                seen.update(int(status) for status in statuses)
                for i in np.flatnonzero(statuses == GetStatus.HIT):
                    if (targets[i] != i).any():
                        wrong.append(f"{keys[i]} holds other bytes")

        reader = threading.Thread(target=read)
        reader.start()
        time.sleep(0.3)
        one.kill()
        assert eventually(lambda: store.get("k0") is None)
        stop.set()
        reader.join(30)
        assert not reader.is_alive()
        assert wrong == []
        assert GetStatus.HIT in seen
        node()  # a new one takes over once the pool has noticed that the first is dead
        assert eventually(lambda: store.put("k0", b"again") is PutStatus.STORED)
        assert store.get("k0") == b"again"


def test_a_restarted_meta_service_is_joined_again(program: Callable[..., Program]) -> None:
    first = program("memcache.meta", "listen=127.0.0.1:0", "reservation_ttl_ms=1000", "lease_ms=1000")
    address = first.expect("serving on").split()[-1]
    program("memcache.local", f"meta_address={address}", "lend_bytes=16MB").expect("joined")
    with memcache.Store(meta_address=address, timeout_ms=2000) as store:
        assert store.put("k", b"1") is PutStatus.STORED
        first.kill()
        assert eventually(lambda: not store.available())
        started = time.monotonic()
        with pytest.raises(memcache.Unavailable):
            store.get("k")
        assert time.monotonic() - started < 10  # at once, not at the deadline of a day
        program("memcache.meta", f"listen={address}", "reservation_ttl_ms=1000", "lease_ms=1000").expect("serving on")

        def works() -> bool:
            try:
                return store.put("again", b"2") in (PutStatus.STORED, PutStatus.PRESENT)
            except memcache.MemCacheError:
                return False

        assert eventually(works)
        assert store.get("again") == b"2"


WRITER = """
import os, sys, threading, time
import numpy as np
import memcache
store = memcache.Store(meta_address=sys.argv[1], protocol=sys.argv[2])
value = np.zeros(48 << 20, np.uint8)
threading.Thread(target=lambda: (time.sleep(float(sys.argv[3])), os.kill(os.getpid(), 9)), daemon=True).start()
while True:
    store.put("mine", value)
    store.remove("mine")
"""


def test_a_killed_writer_leaves_nothing_in_the_way(meta: memcache.MetaService, node: Callable[..., Program]) -> None:
    node(lend="128MB")
    done = subprocess.run(
        [sys.executable, "-c", WRITER, meta.address, "host_tcp", "0.4"], capture_output=True, timeout=60, check=False
    )
    assert done.returncode == -signal.SIGKILL
    with memcache.Store(meta_address=meta.address) as store:
        store.remove("mine")
        assert store.put("mine", b"ours") is PutStatus.STORED
        assert store.get("mine") == b"ours"


def test_an_embedded_service_is_found_by_its_siblings(run_python: Callable[..., str]) -> None:
    script = """
import sys, memcache
with memcache.Store(pool_id=sys.argv[1]) as store:
    assert store.embedded
    print(store.get("k"))
"""
    pool = f"engine-{time.time_ns()}"
    with memcache.Store(pool_id=pool, lend_bytes="8MB") as host:
        assert host.embedded
        assert host.meta_address.startswith("unix-abstract:")
        assert host.put("k", b"shared") is PutStatus.STORED
        assert run_python(script, pool).strip() == "b'shared'"
    with memcache.Store(lend_bytes="8MB") as one, memcache.Store() as other:
        assert one.meta_address != other.meta_address
        one.put("k", b"v")
        assert one.get("k") == b"v"


def test_the_status_command_shows_the_pool(meta: memcache.MetaService, node: Callable[..., Program]) -> None:
    node("node_name=first")
    command = [sys.executable, "-m", "memcache.cli", "status", "--meta-address", meta.address]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=30, check=True)
    assert json.loads(done.stdout)["nodes"][0]["name"] == "first"
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert "first" in done.stdout
    away = [*command[:-1], "127.0.0.1:1"]
    done = subprocess.run(away, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert "127.0.0.1:1" in done.stderr


@pytest.mark.parametrize(("setting", "named"), [("lend=1GB", "lend_bytes"), ("log=memcache=loud", "loud")])
def test_the_local_program_names_bad_settings(setting: str, named: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "memcache.local", "--set", setting],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    assert named in done.stderr
