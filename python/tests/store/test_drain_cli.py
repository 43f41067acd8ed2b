"""`memcache drain --wait-ms` of nodes that do not end as was hoped."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from conftest import Program, eventually, run_cli

import memcache

OBJECTS = 20


@contextmanager
def stuck_drain(address: str, node: Program) -> Iterator[subprocess.Popen[str]]:
    """`memcache drain` waiting for the end of the pool's only node, which has nowhere to put what it holds."""
    with memcache.Store(meta_address=address) as store:
        store.put_batch([f"key {number}" for number in range(OBJECTS)], [b"v" * 1000] * OBJECTS)
        name = store.status()["nodes"][0]["node"]
        command = [sys.executable, "-m", "memcache.cli", "drain", name, "--json", "--wait-ms", "60000"]
        waiting = subprocess.Popen(
            [*command, "--meta-address", address], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            assert eventually(lambda: store.drain(name, "look")["state"] == "draining")
            assert node.process.poll() is None
            yield waiting
        finally:
            waiting.kill()
            waiting.communicate()


def end_of(waiting: subprocess.Popen[str]) -> tuple[int, dict[str, Any]]:
    stdout, stderr = waiting.communicate(timeout=60)
    assert stdout, stderr
    return waiting.returncode, json.loads(stdout)


def test_a_node_killed_in_mid_drain_is_lost_with_what_it_held(
    quick_meta: memcache.MetaService, quick_node: Callable[..., Program]
) -> None:
    node = quick_node()
    with stuck_drain(quick_meta.address, node) as waiting:
        node.kill()
        code, found = end_of(waiting)
    assert (code, found["state"], found["in_pool"], found["objects"]) == (1, "lost", False, OBJECTS)
    looked = run_cli("drain", found["node"], "--look", meta=quick_meta)
    assert looked.returncode == 1
    assert f"lost, {OBJECTS} objects left" in looked.stdout
    assert run_cli("drain", found["node"], meta=quick_meta).returncode == 2, "there is nothing to empty any more"


def test_a_node_that_leaves_in_mid_drain_takes_with_it_what_it_held(
    quick_meta: memcache.MetaService, quick_node: Callable[..., Program]
) -> None:
    node = quick_node()
    with stuck_drain(quick_meta.address, node) as waiting:
        node.process.terminate()
        code, found = end_of(waiting)
    assert (code, found["state"], found["in_pool"], found["objects"]) == (1, "left", False, OBJECTS)


def test_a_restart_of_the_metaservice_ends_a_drain_and_the_command_says_so(
    program: Callable[..., Program],
) -> None:
    meta = program("memcache.meta", "listen=127.0.0.1:0")
    address = meta.expect("serving on").split()[-1]
    node = program("memcache.local", f"meta_address={address}", "lend_bytes=64MB")
    node.expect("joined")
    with stuck_drain(address, node) as waiting:
        meta.kill()
        program("memcache.meta", f"listen={address}").expect("serving on")
        code, found = end_of(waiting)
    # It is in the pool, with all that it held or before it has told of that, and nobody empties it.
    assert (code, found["state"], found["in_pool"]) == (1, "no", True)
    assert "started anew" in found["why"]


def test_a_drain_with_nowhere_to_go_says_so_when_the_wait_is_over(
    quick_meta: memcache.MetaService, quick_node: Callable[..., Program]
) -> None:
    quick_node()
    with memcache.Store(meta_address=quick_meta.address) as store:
        store.put("k", b"v")
        node = store.status()["nodes"][0]["node"]
        done = run_cli("drain", node, "--wait-ms", "300", meta=quick_meta)
        assert done.returncode == 4
        assert "draining, 1 objects left" in done.stdout
        assert "no other node takes objects" in done.stdout
        done = run_cli("drain", node, "--cancel", meta=quick_meta)
        assert (done.returncode, store.get("k")) == (0, b"v")
