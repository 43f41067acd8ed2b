"""Pins, through the Python API and the command."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest
from conftest import run_cli

import memcache
from memcache import PinStatus, PutStatus

LENT_BYTES = 4 << 20
VALUE = bytes((LENT_BYTES // 16) - 64)
"""Sixteen of them fill a node."""


@pytest.fixture
def meta() -> Iterator[memcache.MetaService]:
    with memcache.MetaService(listen="127.0.0.1:0", eviction_high_watermark=1.0, hard_pin_quota=0.125) as service:
        yield service


@pytest.fixture
def store(meta: memcache.MetaService) -> Iterator[memcache.Store]:
    with memcache.Store(meta_address=meta.address, lend_bytes=LENT_BYTES) as store:
        yield store


def fill(store: memcache.Store, name: str, count: int) -> list[str]:
    keys = [f"{name}{number}" for number in range(count)]
    assert store.put_batch(keys, [VALUE] * count).tolist() == [PutStatus.STORED] * count
    return keys


def test_pinned_keys_outlive_a_flood(store: memcache.Store) -> None:
    hard, soft = fill(store, "hard", 2), fill(store, "soft", 2)
    assert store.pin(hard, hard=True).tolist() == [PinStatus.PINNED] * 2
    statuses = store.pin([*soft, "gone"], ttl_ms=3_600_000)
    assert statuses.tolist() == [PinStatus.PINNED, PinStatus.PINNED, PinStatus.ABSENT]
    for turn in range(4):
        fill(store, f"flood{turn}-", 12)
    assert store.exist_batch(hard + soft).all()
    assert store.info("hard0")["pin"] == "hard"
    found = store.info("soft0")
    assert found["pin"] == "soft"
    assert 0 < found["pin_left_ms"] <= 3_600_000
    status = store.status()
    assert (status["hard_pins"], status["soft_pins"]) == (2, 2)
    assert status["nodes"][0]["hard_pinned_bytes"] == status["nodes"][0]["pin_quota_bytes"] == LENT_BYTES // 8
    # All of it is wanted: the soft ones go, the hard ones stay.
    fill(store, "last", 14)
    assert store.exist_batch(hard).all()
    assert not store.exist_batch(soft).any()
    assert store.status()["pins_given_up"] == 2
    assert store.unpin([*hard, *soft]).tolist() == [True, True, False, False]
    fill(store, "more", 16)
    assert not store.exist_batch(hard).any()


def test_hard_pins_are_refused_past_their_quota_and_bad_times_by_name(store: memcache.Store) -> None:
    keys = fill(store, "k", 4)
    statuses = store.pin(keys, hard=True)
    assert statuses.dtype == np.int32
    assert statuses.tolist() == [PinStatus.PINNED, PinStatus.PINNED, PinStatus.OVER_QUOTA, PinStatus.OVER_QUOTA]
    for arguments in ({}, {"ttl_ms": 5, "hard": True}, {"ttl_ms": 0}, {"ttl_ms": 1 << 40}):
        with pytest.raises(memcache.InvalidArgument, match="ttl_ms"):
            store.pin(keys, **arguments)


def test_the_command_pins_and_unpins(meta: memcache.MetaService, store: memcache.Store) -> None:
    fill(store, "k", 3)

    def run(*arguments: str, code: int = 0) -> str:
        done = run_cli(*arguments, meta=meta)
        assert done.returncode == code, done.stderr
        return done.stdout

    text = run("pin", "--hard", "k0", "k1", "k2", code=3)
    for part in ("k1: pinned", "k2: over quota", "hard_pin_quota"):
        assert part in text
    found = json.loads(run("pin", "--ttl-ms", "60000", "--json", "k2", "x", code=3))
    assert found == {"k2": "pinned", "x": "absent"}
    run("pin", "--ttl-ms", "60000", "k2")
    assert "hard pin" in run("info", "k0")
    assert "soft pin, " in run("info", "k2")
    assert "soft pins 1, 0.2 MiB   hard pins 2, 0.5 MiB" in run("status")
    assert json.loads(run("unpin", "--json", "--hex", "6b30", "78")) == {"6b30": "unpinned", "78": "not pinned"}
    assert store.status()["hard_pins"] == 1


def test_no_space_names_the_longest_free_run(store: memcache.Store) -> None:
    keys = fill(store, "k", 16)
    store.pin([keys[5], keys[10]], hard=True)
    store.remove_batch([key for key in keys if key not in (keys[5], keys[10])])
    run = 5 * LENT_BYTES // 16
    assert store.status()["nodes"][0]["longest_free_bytes"] == run
    with pytest.raises(memcache.NoSpace, match=f"the longest free run has {run} bytes"):
        store.put("long", bytes(run))
