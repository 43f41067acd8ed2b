"""Keys, circuit breaker, lending, settings: no engine, no pool."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import memcache
from memcache import _core
from memcache_connector.common.breaker import CircuitBreaker
from memcache_connector.common.keys import Slot, chain_keys, hash_matrix, slot_keys
from memcache_connector.common.lend import LEND_LEAST, LEND_MOST, automatic_lend
from memcache_connector.vllm.config import (
    STORE_KEYS,
    ConnectorConfig,
    ConnectorConfigError,
    pool_id,
    rank_file,
    store_overrides,
)

PREFIX = bytes(range(16))
HASHES = [bytes([number]) * 32 for number in range(4)]


def test_a_key_is_fingerprint_slot_and_hash() -> None:
    keys = slot_keys(PREFIX, Slot(1, 2, 3), hash_matrix(HASHES))
    assert keys.shape == (4, 54)
    assert [bytes(key) for key in keys] == [PREFIX + bytes([0, 1, 0, 2, 0, 3]) + name for name in HASHES]


def test_chain_keys_interleave_slots_unit_by_unit() -> None:
    columns = [(Slot(0, 0, shard), hash_matrix(HASHES)) for shard in range(2)]
    keys = [bytes(key) for key in chain_keys(PREFIX, columns)]
    assert keys == [PREFIX + Slot(0, 0, shard).encode() + name for name in HASHES for shard in range(2)]


@pytest.mark.parametrize("hashes", [[b"", b""], [b"ab", b"abc"], [b"x" * 300]])
def test_hashes_that_make_no_key(hashes: list[bytes]) -> None:
    with pytest.raises(ValueError, match="block hash"):
        hash_matrix(hashes)


def test_no_hashes_make_no_rows() -> None:
    assert hash_matrix([]).shape[0] == 0


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_breaker_waits_longer_after_each_failed_probe() -> None:
    clock = Clock()
    breaker = CircuitBreaker(1000, 3000, clock)
    assert breaker.allow()
    assert breaker.failure()
    assert not breaker.failure(), "failures of one moment open it once"
    waits = []
    for _ in range(4):
        start = clock.now
        while not breaker.allow():
            clock.now += 1
        waits.append(clock.now - start)
        assert not breaker.allow(), "one probe a back-off"
        breaker.failure()
    assert waits == [1, 2, 3, 3]
    breaker.success()
    assert breaker.allow()
    assert not breaker.open


def test_a_probe_without_answer_is_followed_by_another() -> None:
    clock = Clock()
    breaker = CircuitBreaker(100, 300, clock)
    breaker.failure()
    clock.now = 0.1
    assert breaker.allow()
    clock.now = 0.2
    assert breaker.allow()


@pytest.mark.parametrize(
    ("available", "ranks", "lend"),
    [(1 << 40, 1, LEND_MOST), (1 << 40, 4, LEND_MOST // 4), (8 << 30, 2, 512 << 20), (1 << 20, 8, LEND_LEAST)],
)
def test_automatic_lending(available: int, ranks: int, lend: int) -> None:
    assert automatic_lend(ranks, available) == lend


def test_settings_of_connector_and_store_come_apart() -> None:
    config = ConnectorConfig.parse({"lookup_timeout_ms": 7, "meta_address": "a:1", "lend_bytes": "1GB"})
    assert config.lookup_timeout_ms == 7
    assert config.store == {"meta_address": "a:1", "lend_bytes": "1GB"}
    assert config.load_timeout_ms == ConnectorConfig().load_timeout_ms


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"meta_adress": "a:1"}, "unknown key 'meta_adress'; did you mean 'meta_address'"),
        ({"lookup_timeout": 5}, "did you mean 'lookup_timeout_ms'"),
        ({"zzz": 5}, "known keys: .*enable_lookup"),
        ({"lookup_timeout_ms": "5"}, "lookup_timeout_ms has to be int, got '5'"),
        ({"lookup_timeout_ms": True}, "lookup_timeout_ms has to be int"),
        ({"lookup_timeout_ms": -1}, "must not be negative"),
        ({"enable_lookup": 1}, "enable_lookup has to be bool"),
        ({"store": {}}, "unknown key 'store'"),
    ],
)
def test_bad_settings_are_named(extra: dict[str, Any], message: str) -> None:
    with pytest.raises(ConnectorConfigError, match=message):
        ConnectorConfig.parse(extra)


@pytest.mark.parametrize(
    ("engine", "pool"), [("a-b", "a-b"), ("a-b_dp0", "a-b"), ("a-b_dp12", "a-b"), ("x_dp", "x_dp")]
)
def test_data_parallel_ranks_share_an_embedded_pool(engine: str, pool: str) -> None:
    assert pool_id(engine) == pool


def test_an_empty_chain_has_the_right_width() -> None:
    assert chain_keys(PREFIX, [(Slot(0), np.empty((0, 32), dtype=np.uint8))]).shape == (0, 54)


@pytest.mark.parametrize(
    ("worker", "configured", "environment", "lend"),
    [
        (False, "1GB", "2GB", 0),
        (True, "1GB", "2GB", "1GB"),
        (True, None, "2GB", None),
        (True, None, "0", None),
        (True, None, None, automatic_lend(1, 1 << 40)),
        (True, "auto", "2GB", automatic_lend(1, 1 << 40)),
    ],
)
def test_who_lends_how_much(
    monkeypatch: pytest.MonkeyPatch,
    worker: bool,
    configured: str | None,
    environment: str | None,
    lend: int | str | None,
) -> None:
    import memcache_connector.common.lend as module

    monkeypatch.setattr(module, "available_memory", lambda: 1 << 40)
    monkeypatch.delenv("MEMCACHE_LEND_BYTES", raising=False)
    if environment is not None:
        monkeypatch.setenv("MEMCACHE_LEND_BYTES", environment)
    config = ConnectorConfig.parse({} if configured is None else {"lend_bytes": configured})
    overrides = store_overrides(config, "engine_dp1", worker, 1)
    assert overrides.get("lend_bytes") == lend
    assert overrides["pool_id"] == "engine"


@pytest.mark.parametrize(
    ("text", "lend"),
    [
        ("lend_bytes = 0\n", None),
        ('[store]\nlend_bytes = "1GB"\n', None),
        ("timeout_ms = 7\n", automatic_lend(1, 1 << 40)),
    ],
)
def test_a_file_that_says_how_much_to_lend_is_heard(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, lend: int | None
) -> None:
    import memcache_connector.common.lend as module

    monkeypatch.setattr(module, "available_memory", lambda: 1 << 40)
    monkeypatch.delenv("MEMCACHE_LEND_BYTES", raising=False)
    file = tmp_path / "store.toml"
    file.write_text(text)
    monkeypatch.setenv("MEMCACHE_CONFIG", str(file))
    assert store_overrides(ConnectorConfig.parse({}), "engine", True, 1).get("lend_bytes") == lend


def test_the_stores_settings_are_all_known() -> None:
    native = [key for key, _ in _core.store_settings(None, [])]
    assert sorted(entry.name for entry in dataclasses.fields(memcache.StoreConfig)) == sorted(native)
    assert sorted(STORE_KEYS) == sorted(native)


@pytest.mark.parametrize(
    ("persist", "engine", "ranks", "file"),
    [
        ("", "a_dp1", 2, ""),
        ("/dev/shm/kv", "a", 1, "/dev/shm/kv"),
        ("/dev/shm/kv", "a", 2, "/dev/shm/kv_rank1"),
        ("/dev/shm/kv", "a_dp3", 1, "/dev/shm/kv_dp3"),
        ("/dev/shm/kv", "a_dp3", 2, "/dev/shm/kv_dp3_rank1"),
    ],
)
def test_every_rank_lends_a_file_of_its_own(persist: str, engine: str, ranks: int, file: str) -> None:
    assert rank_file(persist, engine, ranks, 1) == file
