"""Bad input is refused before anything moves, and the error names the thing, the value and the limit."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest

import memcache


def test_keys_outside_the_limits(store: memcache.Store) -> None:
    with pytest.raises(memcache.InvalidArgument, match=r"key 0 .* empty"):
        store.put(b"", b"x")
    with pytest.raises(memcache.InvalidArgument, match=r"key 1 .* 257 bytes; the limit is 256"):
        store.exist_batch([b"fine", b"x" * 257])
    with pytest.raises(memcache.InvalidArgument, match="key 0 is a int"):
        store.get(7)  # type: ignore[arg-type]
    with pytest.raises(memcache.InvalidArgument, match="one key"):
        store.exist_batch("abc")
    with pytest.raises(memcache.InvalidArgument, match="limit is 65536"):
        store.exist_batch(["k"] * 65_537)


def test_counts_that_differ(store: memcache.Store) -> None:
    with pytest.raises(memcache.InvalidArgument, match="2 keys but 1 values"):
        store.put_batch(["a", "b"], [b"1"])


def test_a_value_larger_than_any_segment(store: memcache.Store) -> None:
    with pytest.raises(memcache.TooLarge, match=f"{33 << 20} bytes is larger .* the largest has {32 << 20} bytes"):
        store.put("big", bytes(33 << 20))
    statuses = store.put_batch(["big", "small"], [bytes(33 << 20), b"1"])
    assert list(statuses) == [memcache.PutStatus.TOO_LARGE, memcache.PutStatus.STORED]


def test_what_is_no_memory(store: memcache.Store) -> None:
    with pytest.raises(memcache.InvalidArgument, match="not memory"):
        store.put("k", 3.5)


def test_block_ids_outside_the_layout(store: memcache.Store) -> None:
    layout = store.register_layout([np.zeros((4, 8), np.uint8)])
    for bad in (4, -1, 2**40):
        with pytest.raises(memcache.InvalidArgument, match=rf"block id {bad} at position 1 is outside .* 0\.\.4"):
            store.put_blocks(layout, ["a", "b"], np.array([0, bad]))
        with pytest.raises(memcache.InvalidArgument, match=f"block id {bad}"):
            store.get_blocks_async(layout, ["a", "b"], [0, bad])
    with pytest.raises(memcache.InvalidArgument, match="2 keys but 1 block ids"):
        store.put_blocks(layout, ["a", "b"], [0])
    with pytest.raises(memcache.InvalidArgument, match="block_ids is a"):
        store.put_blocks(layout, ["a"], np.array([0.0]))  # type: ignore[arg-type]
    assert store.status()["objects"] == 0


def test_tensors_that_are_no_cache(store: memcache.Store) -> None:
    with pytest.raises(memcache.InvalidArgument, match="at least one tensor"):
        store.register_layout([])
    with pytest.raises(memcache.InvalidArgument, match="overlap"):
        store.register_layout([np.lib.stride_tricks.as_strided(np.zeros(8, np.uint8), (4, 4), (1, 1))])
    with pytest.raises(memcache.InvalidArgument, match="not a multiple of 3 blocks"):
        store.register_layout([np.zeros((4, 8), np.uint8)], num_blocks=3)
    with pytest.raises(memcache.InvalidArgument, match="negative"):
        store.register_layout([np.zeros((4, 8), np.uint8)[::-1]])
    with pytest.raises(memcache.InvalidArgument, match="no tensor"):
        store.register_layout([b"bytes"])


def test_a_misspelt_setting_is_told_with_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(memcache.ConfigError, match=r"lend_byte.*lend_bytes"):
        memcache.Store(lend_byte="1GB")
    with pytest.raises(memcache.ConfigError, match=r"lisen.*listen"):
        memcache.MetaService(lisen="127.0.0.1:0").start()
    file = tmp_path / "store.toml"
    file.write_text('protocl = "auto"\n')
    with pytest.raises(memcache.ConfigError, match=r"store\.toml.*protocl.*protocol"):
        memcache.StoreConfig.load(file)
    with pytest.raises(memcache.ConfigError, match="host_smoke"):
        memcache.Store(protocol="host_smoke")
    monkeypatch.setenv("MEMCACHE_TIMEOUT_MSS", "5")
    with pytest.raises(memcache.ConfigError, match=r"(?i)timeout_mss.*timeout_ms"):
        memcache.StoreConfig.load()


def test_settings_come_from_file_environment_and_code_in_that_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "store.toml"
    file.write_text('timeout_ms = 1\nlend_bytes = "1MB"\nnode_name = "file"\n')
    monkeypatch.setenv("MEMCACHE_CONFIG", str(file))
    monkeypatch.setenv("MEMCACHE_LEND_BYTES", "2MB")
    monkeypatch.setenv("MEMCACHE_NODE_NAME", "environment")
    found = memcache.StoreConfig.load(node_name="code")
    assert (found.timeout_ms, found.lend_bytes, found.node_name) == (1, "2MB", "code")
    assert found.protocol == "auto"


def test_a_port_in_use_is_named(meta: memcache.MetaService) -> None:
    with pytest.raises(memcache.AddressInUse, match=meta.address):
        memcache.MetaService(listen=meta.address).start()


def test_a_closed_store_says_so(meta: memcache.MetaService) -> None:
    store = memcache.Store(meta_address=meta.address)
    assert store.close()
    assert store.close()
    with pytest.raises(memcache.Closed):
        store.get("k")


def test_nobody_at_the_address_is_unavailable_not_a_hang() -> None:
    with memcache.Store(meta_address="127.0.0.1:1", timeout_ms=2000) as store:
        with pytest.raises(memcache.Unavailable, match=r"127\.0\.0\.1:1"):
            store.get("k")
        with pytest.raises(memcache.Unavailable):
            store.put("k", b"v")
        layout = store.register_layout([np.zeros((4, 8), np.uint8)])
        statuses = store.put_blocks_async(layout, ["a"], [0]).result()
        assert list(statuses) == [memcache.PutStatus.UNAVAILABLE]
        assert not store.available()


def _use_after_fork(store: memcache.Store, outcome: multiprocessing.SimpleQueue[str]) -> None:
    try:
        store.get("k")
        outcome.put("no error")
    except memcache.ForkError as error:
        outcome.put(str(error))
    os._exit(0)


def _stop_after_fork(meta: memcache.MetaService, store: memcache.Store) -> None:
    meta.stop()
    store.close()
    os._exit(0)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_a_forked_child_that_cleans_up_leaves_the_parent_alone(
    meta: memcache.MetaService, store: memcache.Store
) -> None:
    child = multiprocessing.get_context("fork").Process(target=_stop_after_fork, args=(meta, store))
    child.start()
    child.join(20)
    assert child.exitcode == 0
    assert store.put("k", b"v") is memcache.PutStatus.STORED
    assert store.get("k") == b"v"


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
def test_use_after_fork_is_refused(store: memcache.Store) -> None:
    context = multiprocessing.get_context("fork")
    outcome = context.SimpleQueue()
    child = context.Process(target=_use_after_fork, args=(store, outcome))
    child.start()
    child.join(20)
    assert child.exitcode == 0
    assert f"opened in process {os.getpid()}" in outcome.get()
    store.put("k", b"still works here")
    assert store.get("k") == b"still works here"
