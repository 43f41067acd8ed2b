"""One real engine in this process, its pool embedded or a MetaService of the test's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import memcache

TEXT = "The quick brown fox jumps over the lazy dog. " * 8
FIRST, SECOND = TEXT, TEXT[:352] + " and sleeps."
SHARED = 352
"""Tokens (bytes) that the two prompts have in common: eleven blocks of 32."""

BLOCKS = SHARED // 32
SHORT_REST: dict[str, Any] = {"reservation_ttl_ms": 1000, "lease_ms": 1000}
"""A node that joins again is written to after the longer of these, when nobody can be at it from before."""

MakeEngine = Callable[..., Any]


@pytest.fixture
def pool() -> Any:
    """A MetaService with one node that lends 64 MiB; yields the service."""
    with (
        memcache.MetaService(listen="127.0.0.1:0", **SHORT_REST) as meta,
        memcache.LocalService(meta_address=meta.address, lend_bytes=64 << 20) as local,
    ):
        assert local.wait_joined(10_000)
        yield meta


def shared(pool: Any, **extra: Any) -> dict[str, Any]:
    return {"kv_connector_extra_config": {"meta_address": pool.address, "lend_bytes": 0} | extra}


@pytest.fixture(scope="module")
def expected(models: dict[str, Path]) -> list[list[int]]:
    """Greedy tokens of FIRST and SECOND from an engine without connector."""
    from conftest import Engine

    plain = Engine(models["llama"], None)
    tokens = plain.generate(FIRST, SECOND)
    plain.close()
    assert tokens[0] != tokens[1]
    return tokens


def test_a_repeated_prompt_is_loaded_from_the_embedded_pool(
    engine: MakeEngine, models: dict[str, Path], expected: list[list[int]]
) -> None:
    one = engine(models["llama"], {})
    assert one.generate(FIRST) == expected[:1]
    assert one.cached == [0]
    for prompt, tokens in zip((FIRST, SECOND), expected, strict=True):
        assert one.reset()
        assert one.generate(prompt) == [tokens]
        assert one.cached == [SHARED]
    assert one.metric("external_prefix_cache_hits") == 2 * SHARED
    assert one.metric("memcache_saved_blocks") == BLOCKS
    assert one.metric("memcache_loaded_blocks") == 2 * BLOCKS
    assert one.metric("memcache_load_failures") == 0


def test_prompts_of_one_batch_load_the_same_blocks(
    engine: MakeEngine, models: dict[str, Path], expected: list[list[int]]
) -> None:
    one = engine(models["llama"], {})
    assert one.generate(FIRST) == expected[:1]
    assert one.reset()
    assert one.generate(FIRST, SECOND, FIRST, SECOND) == expected * 2
    assert one.cached == [SHARED] * 4


def test_the_engines_own_prefix_cache_comes_first(
    engine: MakeEngine, models: dict[str, Path], expected: list[list[int]]
) -> None:
    one = engine(models["llama"], {})
    assert one.generate(FIRST) == expected[:1]
    assert one.generate(SECOND) == expected[1:]
    assert one.cached == [SHARED]
    assert one.metric("external_prefix_cache_hits") == 0


def test_a_second_engine_loads_what_the_first_saved(
    engine: MakeEngine, models: dict[str, Path], expected: list[list[int]], pool: Any
) -> None:
    writer = engine(models["llama"], {"kv_role": "kv_producer"} | shared(pool))
    assert writer.generate(FIRST) == expected[:1]
    writer.settle()
    writer.close()
    reader = engine(models["llama"], {"kv_role": "kv_consumer"} | shared(pool))
    assert reader.generate(FIRST, SECOND) == expected
    assert reader.cached == [SHARED, SHARED]
    assert reader.metric("memcache_saved_blocks") == 0, "a consumer does not save"


def test_generated_tokens_are_saved_too(engine: MakeEngine, models: dict[str, Path], pool: Any) -> None:
    chat = engine(models["llama"], shared(pool))
    prompt = list(range(3, 103))
    answer = chat.generate(prompt, max_tokens=64)[0]
    chat.settle()
    assert chat.reset()
    turn = prompt + answer + [5, 6, 7]
    chat.generate(turn)
    # The KV of the last generated token was never computed: 163 tokens, five whole blocks.
    assert chat.cached == [160]


def test_a_pool_in_place_of_the_engines_own_prefix_cache(
    engine: MakeEngine, models: dict[str, Path], expected: list[list[int]]
) -> None:
    one = engine(models["llama"], {}, enable_prefix_caching=False)
    assert one.generate(FIRST) == expected[:1]
    one.settle()
    assert one.generate(SECOND) == expected[1:]
    assert one.cached == [SHARED]


def test_loads_that_fail_are_recomputed(
    engine: MakeEngine, models: dict[str, Path], expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = engine(models["llama"], {})
    assert one.generate(FIRST) == expected[:1]
    assert one.reset()
    worker = one.core.scheduler.connector._scheduler.local_drain.__self__
    lose_from(worker, monkeypatch, block=4)
    assert one.generate(FIRST) == expected[:1]
    assert one.metric("memcache_load_misses") == BLOCKS - 4
    assert one.metric("external_prefix_cache_hits") == SHARED, "vLLM counts what it was promised"
    # The four good blocks were kept, the others computed again; all of them are in the engine now.
    assert one.generate(FIRST) == expected[:1]
    assert one.cached == [SHARED]


def lose_from(worker: Any, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """Have every load miss all blocks from this one on, with the objects really gone from what it asks for."""
    store = worker._store
    get_blocks = store.get_blocks_async

    def losing(layout: Any, keys: Any, block_ids: Any, timeout_ms: int | None = None) -> Any:
        keys = keys.copy()
        keys[block:, -1] ^= 0xFF
        return get_blocks(layout, keys, block_ids, timeout_ms=timeout_ms)

    monkeypatch.setattr(worker, "_store", Redirect(store, get_blocks_async=losing))


class Redirect:
    """An object with some methods replaced."""

    def __init__(self, target: Any, **methods: Any) -> None:
        self._target = target
        self.__dict__.update(methods)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)


# Where the processor has AMX, vLLM takes a backend for it that cannot load float32.
MLA = {"block_size": 16, "attention_backend": "CPU_MLA"}


@pytest.mark.parametrize("family", ["mla", "hybrid"])
def test_other_families_of_attention(engine: MakeEngine, models: dict[str, Path], family: str) -> None:
    options: dict[str, Any] = {"load_format": "dummy"} | (MLA if family == "mla" else {})
    plain = engine(models[family], None, **options)
    expected = plain.generate(FIRST, SECOND)
    plain.close()
    one = engine(models[family], {}, **options)
    assert one.generate(FIRST, SECOND) == expected
    for prompt, tokens in zip((SECOND, FIRST), expected[::-1], strict=True):
        assert one.reset()
        assert one.generate(prompt) == [tokens]
        assert one.cached == [SHARED]
    assert one.metric("external_prefix_cache_hits") == 2 * SHARED
    assert one.metric("memcache_load_failures") == 0


def test_a_hybrid_load_that_fails_is_recomputed(
    engine: MakeEngine, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = engine(models["hybrid"], None, load_format="dummy")
    expected = plain.generate(FIRST)
    plain.close()
    one = engine(models["hybrid"], {}, load_format="dummy")
    assert one.generate(FIRST) == expected
    assert one.reset()
    lose_from(one.core.scheduler.connector._scheduler.local_drain.__self__, monkeypatch, block=1)
    assert one.generate(FIRST) == expected
    assert one.metric("memcache_load_misses") > 0


def test_a_small_pool_evicts_and_goes_on(
    engine: MakeEngine, models: dict[str, Path], expected: list[list[int]]
) -> None:
    # A block has 64 KiB: 4 MiB hold less than 64 blocks, and eight prompts have 28 each.
    one = engine(models["llama"], {"kv_connector_extra_config": {"lend_bytes": 4 << 20}})
    assert one.generate(FIRST) == expected[:1]
    for seed in range(8):
        one.generate([3 + (seed * 7 + at * (seed + 3)) % 250 for at in range(900)], max_tokens=1)
        one.settle()
    assert one.reset()
    assert one.generate(FIRST, SECOND) == expected
    assert one.cached[0] == 0, "evicted"
    assert one.metric("memcache_save_no_space") == 0


def test_two_pools_under_a_multi_connector(
    engine: MakeEngine, models: dict[str, Path], expected: list[list[int]]
) -> None:
    def child(pool_id: str) -> dict[str, Any]:
        return {
            "kv_connector": "MemCacheConnector",
            "kv_connector_module_path": "memcache_connector.vllm",
            "kv_role": "kv_both",
            "kv_load_failure_policy": "recompute",
            "kv_connector_extra_config": {"lend_bytes": "16MB", "pool_id": pool_id},
        }

    several = {"connectors": [child("first"), child("second")]}
    both = {"kv_connector": "MultiConnector", "kv_connector_module_path": None, "kv_connector_extra_config": several}
    one = engine(models["llama"], both)
    assert one.generate(FIRST) == expected[:1]
    one.settle()
    assert one.metric("memcache_saved_blocks") == 2 * BLOCKS
    assert one.reset()
    assert one.generate(FIRST) == expected[:1]
    assert one.cached == [SHARED]


def test_without_a_pool_the_engine_serves(
    engine: MakeEngine, models: dict[str, Path], expected: list[list[int]]
) -> None:
    transfer = {"kv_connector_extra_config": {"meta_address": "127.0.0.1:9", "lend_bytes": 0, "retry_ms": 50}}
    one = engine(models["llama"], transfer)
    assert one.generate(FIRST, SECOND) == expected
    assert one.reset()
    assert one.generate(FIRST, SECOND) == expected
    assert one.metric("memcache_lookup_failures") > 0
    assert one.metric("external_prefix_cache_hits") == 0


def test_the_pool_comes_back(engine: MakeEngine, models: dict[str, Path], expected: list[list[int]], pool: Any) -> None:
    one = engine(models["llama"], shared(pool, retry_ms=20, retry_max_ms=20))
    assert one.generate(FIRST) == expected[:1]
    one.settle()
    address = pool.address
    pool.stop()
    assert one.reset()
    assert one.generate(FIRST) == expected[:1], "served without the pool"
    with memcache.MetaService(listen=address, **SHORT_REST):
        assert eventually(lambda: one.reset() and one.generate(FIRST) == expected[:1] and one.cached == [SHARED])


def eventually(condition: Callable[[], bool], seconds: float = 30.0) -> bool:
    """Whether ``condition`` holds within this time."""
    import time

    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


def test_resetting_the_connector_empties_the_pool(
    engine: MakeEngine, models: dict[str, Path], expected: list[list[int]]
) -> None:
    one = engine(models["llama"], {})
    assert one.generate(FIRST) == expected[:1]
    assert one.llm.reset_prefix_cache(reset_connector=True)
    assert one.generate(FIRST) == expected[:1]
    assert one.cached == [0]


def test_an_aborted_load_holds_its_blocks_until_it_ends(
    engine: MakeEngine, models: dict[str, Path], expected: list[list[int]]
) -> None:
    """A request that ends while its blocks are being filled: nobody else gets those blocks before."""
    one = engine(models["llama"], {})
    assert one.generate(FIRST) == expected[:1]
    assert one.reset()
    core, scheduler = one.core, one.core.scheduler
    one.llm.llm_engine.add_request("loading", {"prompt_token_ids": tokens_of(one, FIRST)}, greedy())
    output = None
    for _ in range(1000):
        output = scheduler.schedule()
        if waiting_for_load(scheduler):
            break
    assert output is not None
    assert output.kv_connector_metadata.loads
    pool = scheduler.kv_cache_manager.block_pool
    free = pool.get_num_free_blocks()
    one.llm.llm_engine.abort_request([request.request_id for request in scheduler.requests.values()], internal=True)
    assert pool.get_num_free_blocks() == free, "the blocks are about to be written"
    scheduler.update_from_output(output, core.model_executor.execute_model(output))
    one.settle()
    assert pool.get_num_free_blocks() > free
    assert one.generate(FIRST) == expected[:1]


def tokens_of(one: Any, text: str) -> list[int]:
    return list(one.llm.get_tokenizer().encode(text))


def greedy() -> Any:
    from vllm import SamplingParams

    return SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)


def waiting_for_load(scheduler: Any) -> bool:
    return any(request.status.name == "WAITING_FOR_REMOTE_KVS" for request in scheduler.requests.values())
