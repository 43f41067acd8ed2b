"""Which engines share: every difference that changes the bytes of a block changes the fingerprint, and is named."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scripted import Harness, full_attention, sliding_window

from memcache.store import fingerprint_digest
from memcache_connector.vllm.geometry import read_geometry, read_place
from memcache_connector.vllm.identity import identity_fields


@pytest.fixture
def plain(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Harness:
    """An engine's configuration."""
    return Harness(models["llama"], monkeypatch)


def fields_of(config: Any, cache: Any, model_id: str = "") -> dict[str, str]:
    cache = dataclasses.replace(cache)  # Without what the original has cached of its groups.
    return identity_fields(config, cache, read_geometry(config, cache), model_id)


def differing(ours: dict[str, str], theirs: dict[str, str]) -> set[str]:
    return {name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)}


CHANGES: dict[str, tuple[Callable[[Any, Any], Any], set[str]]] = {
    "model": (lambda config, cache: setattr(config.model_config, "model", "/elsewhere"), {"model"}),
    "revision": (lambda config, cache: setattr(config.model_config, "revision", "v2"), {"revision"}),
    "rope": (lambda config, cache: setattr(config.model_config.hf_config, "rope_theta", 7.0), {"model_config"}),
    "kv dtype": (lambda config, cache: setattr(config.cache_config, "cache_dtype", "fp8"), {"kv_cache_dtype"}),
    "hash": (
        lambda config, cache: setattr(config.cache_config, "prefix_caching_hash_algo", "sha256_cbor"),
        {"hash_algorithm"},
    ),
    "layout": (lambda config, cache: setattr(cache, "kv_cache_layout", "LBNHC"), {"byte_order"}),
    "block size": (
        lambda config, cache: setattr(cache, "kv_cache_groups", [full_attention(0, block=64)]),
        {"groups", "platform"},
    ),
    "groups": (
        lambda config, cache: setattr(cache, "kv_cache_groups", [full_attention(0), sliding_window(1, 64)]),
        {"groups"},
    ),
    "tensor parallel": (
        lambda config, cache: setattr(config.parallel_config, "tensor_parallel_size", 2),
        {"tensor_parallel", "shards"},
    ),
}


@pytest.mark.parametrize(("change", "names"), CHANGES.values(), ids=CHANGES.keys())
def test_a_difference_is_named(plain: Harness, change: Callable[[Any, Any], Any], names: set[str]) -> None:
    before = fields_of(plain.config, plain.cache)
    config, cache = copy.deepcopy(plain.config), copy.deepcopy(plain.cache)
    change(config, cache)
    after = fields_of(config, cache)
    assert differing(before, after) == names
    assert fingerprint_digest("scope", before) != fingerprint_digest("scope", after)


@pytest.mark.parametrize("layout", ["LHBNC", "BLHNC", "BHLNC", "HND"])
def test_where_blocks_lie_in_memory_makes_no_difference(plain: Harness, layout: str) -> None:
    before = fields_of(plain.config, plain.cache)
    plain.cache.kv_cache_layout = layout
    assert fields_of(plain.config, plain.cache) == before


def test_the_hash_seed_of_the_environment_counts(plain: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    before = fields_of(plain.config, plain.cache)
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    assert differing(before, fields_of(plain.config, plain.cache)) == {"hash_seed"}


def test_a_name_of_ones_own_replaces_the_path(plain: Harness) -> None:
    assert fields_of(plain.config, plain.cache, "llama-tiny")["model"] == "llama-tiny"


def test_every_value_fits_the_pool(plain: Harness) -> None:
    plain.cache.kv_cache_groups = [sliding_window(index, 64 + index) for index in range(60)]
    fields = fields_of(plain.config, plain.cache)
    assert len(fields) <= 64
    assert all(len(value.encode()) <= 4096 for value in fields.values())


@pytest.mark.parametrize(
    ("rank", "replicas", "place"),
    [(0, 1, (0, 0, True)), (3, 1, (0, 3, True)), (6, 2, (1, 1, True)), (5, 4, (1, 0, False)), (4, 4, (1, 0, True))],
)
def test_ranks_find_their_place(plain: Harness, rank: int, replicas: int, place: tuple[int, int, bool]) -> None:
    parallel = plain.config.parallel_config
    parallel.tensor_parallel_size, parallel.pipeline_parallel_size, parallel.rank = 4, 2, rank
    plain.cache.kv_tp_replicas = replicas
    found = read_place(plain.config, plain.cache)
    assert (found.pipeline, found.shard, found.writes) == place
    assert read_geometry(plain.config, plain.cache).shards == 4 // replicas
