"""The scheduler's half against vLLM's real scheduler: what is asked, loaded, saved and held, and when."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scripted import Answer, Harness, exist_answer, full_attention, sliding_window, unit_answer

import memcache
from memcache_connector.vllm.metadata import MemCacheWorkerMetadata

Make = Callable[..., Harness]


@pytest.fixture
def harness(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes a scheduler with our connector."""
    return lambda **options: Harness(models["llama"], monkeypatch, **options)


def load_done(**more: Any) -> dict[str, Any]:
    return {"finished_recving": {"r"}} | more


# ---- looking up ---------------------------------------------------------------------------------------------------


def test_one_look_up_a_request_and_a_token_is_left_to_compute(harness: Make) -> None:
    h = harness()
    h.store.answers = [unit_answer(3)]
    h.add(96)
    h.scheduler.schedule()
    assert len(h.store.asked) == 1
    assert h.store.asked[0].shape == (2, 54), "of three full blocks the last has to be computed"


def test_what_the_pool_has_is_loaded_behind_what_the_engine_has(harness: Make) -> None:
    h = harness()
    h.store.answers = [unit_answer(0), unit_answer(4)]
    h.add(70, "first", max_tokens=1)
    output = h.scheduler.schedule()
    h.answer(output, **h.saved(output))
    request = h.add(200)
    output = h.scheduler.schedule()
    (load,) = h.orders(output).loads
    assert load.req_id == "r"
    (part,) = load.parts
    assert part.hashes == tuple(request.block_hashes[2:4]), "two blocks are in the engine already"
    table = h.scheduler.kv_cache_manager.get_block_ids("r")[0]
    assert part.block_ids.tolist() == table[2:4]


def test_a_slow_look_up_is_asked_for_again_without_a_second_rpc(harness: Make) -> None:
    h = harness()
    slow = Answer()
    h.store.answers = [slow]
    h.add(100)
    for _ in range(3):
        output = h.scheduler.schedule()
        assert not output.num_scheduled_tokens
        assert not h.orders(output).loads
        h.answer(output)
    slow.resolve(unit_answer(3))
    assert h.orders(h.scheduler.schedule()).loads
    assert len(h.store.asked) == 1


def test_a_look_up_without_answer_ends_as_a_miss(harness: Make) -> None:
    h = harness(lookup_timeout_ms=30, retry_ms=60_000, retry_max_ms=60_000)
    h.store.answers = [Answer()]
    h.add(100)
    output = scheduled_eventually(h, "r")
    assert output.num_scheduled_tokens["r"] == 100
    # The pool is left alone now: the next request is not even looked up.
    h.add(100, "next", first=50)
    assert h.scheduler.schedule().num_scheduled_tokens["next"] == 100
    assert len(h.store.asked) == 1


def scheduled_eventually(h: Harness, name: str, seconds: float = 10.0) -> Any:
    """Steps until this request is computed; the step's output."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        output = h.scheduler.schedule()
        if name in output.num_scheduled_tokens or h.orders(output).loads:
            return output
        h.answer(output)
        time.sleep(0.002)
    raise AssertionError(f"{name} was not scheduled")


@pytest.mark.parametrize("error", [memcache.Unavailable("gone"), memcache.Timeout("late")])
def test_a_failed_look_up_opens_the_breaker_and_a_probe_closes_it(harness: Make, error: Exception) -> None:
    h = harness(retry_ms=20, retry_max_ms=20)
    h.store.answers = [error, unit_answer(2), unit_answer(2)]
    h.add(100, "a")
    assert h.scheduler.schedule().num_scheduled_tokens["a"] == 100
    time.sleep(0.03)
    h.add(100, "b", first=20)
    assert h.orders(h.scheduler.schedule()).loads
    h.add(100, "c", first=40)
    assert h.orders(h.scheduler.schedule()).loads


def test_blocks_being_written_are_waited_for(harness: Make) -> None:
    h = harness()
    h.store.answers = [unit_answer(0, pending=3), unit_answer(1, pending=2), unit_answer(3)]
    h.add(100)
    output = scheduled_eventually(h, "r")
    (load,) = h.orders(output).loads
    assert len(load.parts[0].block_ids) == 3


def test_blocks_being_written_for_too_long_are_not(harness: Make) -> None:
    h = harness(pending_wait_ms=20)
    h.store.answers = [unit_answer(1, pending=2)] * 100
    h.add(100)
    (load,) = h.orders(scheduled_eventually(h, "r")).loads
    assert len(load.parts[0].block_ids) == 1, "what is there is taken"


def test_a_request_that_waits_for_blocks_is_looked_up_once(harness: Make) -> None:
    h = harness()
    h.store.answers = [unit_answer(0), unit_answer(2)]
    h.add(1000, "big", max_tokens=20)
    h.answer(h.scheduler.schedule())
    request = h.add(1000, first=50)
    for _ in range(5):
        output = h.scheduler.schedule()
        assert not h.orders(output).loads, "32 of 64 blocks are taken"
        h.answer(output)
    assert request.status.name == "WAITING"
    assert len(h.store.asked) == 2


def test_with_look_ups_off_nothing_is_asked(harness: Make) -> None:
    h = harness(enable_lookup=False)
    h.add(100)
    output = h.scheduler.schedule()
    assert output.num_scheduled_tokens["r"] == 100
    assert not h.store.asked
    assert h.orders(output).saves


# ---- loading ------------------------------------------------------------------------------------------------------


def test_after_the_load_the_rest_is_computed(harness: Make) -> None:
    h = harness()
    h.store.answers = [unit_answer(3)]
    h.add(100)
    output = h.scheduler.schedule()
    assert not output.num_scheduled_tokens
    h.answer(output, **load_done())
    output = h.scheduler.schedule()
    assert output.num_scheduled_tokens == {"r": 4}
    assert not h.orders(output).saves, "what was loaded is not saved again"


def test_a_failed_block_keeps_what_is_before_it_and_is_saved_again(harness: Make) -> None:
    h = harness()
    h.store.answers = [unit_answer(3)]
    request = h.add(100)
    output = h.scheduler.schedule()
    bad = h.orders(output).loads[0].parts[0].block_ids[1]
    report = MemCacheWorkerMetadata(failed_loads={"r"}, pool_answered=True)
    h.answer(output, **load_done(invalid_block_ids={int(bad)}, kv_connector_worker_meta=report))
    output = h.scheduler.schedule()
    assert output.num_scheduled_tokens == {"r": 68}, "one block of 32 was kept"
    assert len(h.store.asked) == 1, "not looked up again"
    names = h.orders(output).saves[0].parts[0].hashes
    assert names == tuple(request.block_hashes[0:3])


def test_a_failed_load_of_a_hybrid_model_is_recomputed_whole(harness: Make) -> None:
    h = harness(groups=[full_attention(0), sliding_window(1, 64)])
    h.store.answers = [exist_answer([1, 1, 1], [1, 1, 1])]
    h.add(100)
    output = h.scheduler.schedule()
    assert h.orders(output).loads
    report = MemCacheWorkerMetadata(failed_loads={"r"}, pool_answered=True)
    h.answer(output, **load_done(failed_recving={"r"}, kv_connector_worker_meta=report))
    output = h.scheduler.schedule()
    assert output.num_scheduled_tokens == {"r": 100}
    assert len(h.store.asked) == 1


def test_an_abort_during_a_load_keeps_the_blocks_until_it_is_over(harness: Make) -> None:
    from vllm.v1.request import RequestStatus

    h = harness()
    idle = h.free_blocks
    h.store.answers = [unit_answer(3)]
    h.add(100)
    output = h.scheduler.schedule()
    held = h.free_blocks
    assert held < idle
    h.scheduler.finish_requests("r", RequestStatus.FINISHED_ABORTED)
    assert h.free_blocks == held
    assert not h.connector.has_pending_push_work(), "blocks that were not loaded are not saved"
    h.answer(output, **load_done())
    assert h.free_blocks == idle


# ---- saving -------------------------------------------------------------------------------------------------------


def test_blocks_are_held_until_every_rank_has_reported(harness: Make) -> None:
    h = harness()
    idle = h.free_blocks
    h.store.answers = [unit_answer(0)]
    request = h.add(100, max_tokens=1)
    output = h.scheduler.schedule()
    (job,) = h.orders(output).saves
    assert job.parts[0].hashes == tuple(request.block_hashes[:3])
    assert job.parts[0].block_ids.tolist() == h.scheduler.kv_cache_manager.get_block_ids("r")[0][:3]
    h.answer(output)
    assert "r" not in h.scheduler.requests, "the request is over"
    assert h.free_blocks == idle - 3, "its three full blocks are not"
    assert h.connector.has_pending_push_work()
    assert h.scheduler.has_requests()
    output = h.scheduler.schedule()
    assert h.orders(output).idle
    assert not h.orders(output).saves
    report = MemCacheWorkerMetadata(finished_saves=Counter({job.job_id: 1}))
    h.answer(output, kv_connector_worker_meta=report)
    assert h.free_blocks == idle
    assert not h.connector.has_pending_push_work()


def names_saved_until_the_end(h: Harness) -> list[bytes]:
    """Plays request "r" to its end; the hashes of all blocks that were ordered to be saved, in that order."""
    names: list[bytes] = []
    while "r" in h.scheduler.requests:
        output = h.scheduler.schedule()
        names += [name for job in h.orders(output).saves for part in job.parts for name in part.hashes]
        h.answer(output, **h.saved(output))
    return names


def test_each_block_is_saved_once_as_it_fills(harness: Make) -> None:
    h = harness()
    h.store.answers = [unit_answer(0)]
    request = h.add(60, max_tokens=40)
    names = names_saved_until_the_end(h)
    # 60 prompt tokens and 39 generated ones have KV: three full blocks.
    assert names == request.block_hashes[:3]


def test_decode_blocks_are_left_out_on_request(harness: Make) -> None:
    h = harness(save_decode_blocks=False)
    h.store.answers = [unit_answer(0)]
    request = h.add(60, max_tokens=40)
    names = names_saved_until_the_end(h)
    assert names == request.block_hashes[:1]


@pytest.mark.parametrize(
    ("role", "extra", "saves"),
    [
        ("kv_both", {}, True),
        ("kv_producer", {}, True),
        ("kv_consumer", {}, False),
        ("kv_consumer", {"consumer_saves": True}, True),
    ],
)
def test_roles_that_save(harness: Make, role: str, extra: dict[str, Any], saves: bool) -> None:
    h = harness(role=role, **extra)
    h.store.answers = [unit_answer(0)]
    h.add(100)
    assert bool(h.orders(h.scheduler.schedule()).saves) is saves
    assert len(h.store.asked) == 1, "every role looks up"


def test_beyond_the_limit_saves_wait_and_go_on_later(harness: Make) -> None:
    h = harness(max_pinned_blocks=2)
    h.store.answers = [unit_answer(0)]
    request = h.add(100, max_tokens=3)
    first = h.scheduler.schedule()
    assert h.orders(first).saves[0].parts[0].hashes == tuple(request.block_hashes[:2])
    h.answer(first, **h.saved(first))
    second = h.scheduler.schedule()
    assert h.orders(second).saves[0].parts[0].hashes == tuple(request.block_hashes[2:3])


def test_what_does_not_fit_when_the_request_ends_is_given_up(harness: Make) -> None:
    h = harness(max_pinned_blocks=2)
    h.store.answers = [unit_answer(0)]
    h.add(100, max_tokens=1)
    output = h.scheduler.schedule()
    assert h.answer(output)["save_drops"] == 1


def test_a_preempted_request_starts_over(harness: Make) -> None:
    h = harness()
    h.store.answers = [unit_answer(0), unit_answer(2)]
    h.add(100, max_tokens=8)
    output = h.scheduler.schedule()
    h.answer(output, **h.saved(output))
    assert h.scheduler.reset_prefix_cache(reset_running_requests=True)
    output = h.scheduler.schedule()
    (load,) = h.orders(output).loads
    assert len(load.parts[0].block_ids) == 2
    h.answer(output, **load_done())
    assert h.scheduler.schedule().num_scheduled_tokens == {"r": 101 - 64}


def test_a_dead_pool_is_not_given_blocks_to_hold(harness: Make) -> None:
    h = harness(retry_ms=60_000, retry_max_ms=60_000)
    h.store.answers = [memcache.Unavailable("gone")]
    h.add(100)
    output = h.scheduler.schedule()
    assert output.num_scheduled_tokens == {"r": 100}
    assert not h.orders(output).saves
    assert not h.connector.has_pending_push_work()


def test_a_worker_that_cannot_use_the_pool_ends_all_planning(harness: Make) -> None:
    h = harness()
    h.store.answers = [unit_answer(0)]
    h.add(100, "a")
    output = h.scheduler.schedule()
    report = h.saved(output)["kv_connector_worker_meta"]
    report.unusable = "no memory"
    h.answer(output, kv_connector_worker_meta=report)
    h.add(100, "b", first=50)
    output = h.scheduler.schedule()
    assert output.num_scheduled_tokens["b"] == 100
    assert not h.orders(output).saves
    assert len(h.store.asked) == 1


def test_what_the_engine_has_itself_is_offered_again_now_and_then(
    harness: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    import memcache_connector.vllm.scheduler as module

    def saves_of(name: str) -> int:
        h.add(70, name, max_tokens=1)
        output = h.scheduler.schedule()
        h.answer(output, **h.saved(output))
        return sum(len(part.block_ids) for job in h.orders(output).saves for part in job.parts)

    h = harness()
    h.store.answers = [unit_answer(0)]
    assert saves_of("first") == 2
    assert saves_of("again") == 2, "the pool may have lost it"
    assert saves_of("soon after") == 0
    monkeypatch.setattr(module, "REOFFER_SECONDS", 0.0)
    assert saves_of("later") == 2
    assert len(h.store.asked) == 1, "what the engine has itself is not looked up"


# ---- several groups -----------------------------------------------------------------------------------------------


def test_groups_of_full_attention_need_all_their_blocks(harness: Make) -> None:
    h = harness(groups=[full_attention(0), full_attention(1, block=64)])
    # A unit of 64 tokens: two blocks of the first group, one of the second.
    h.store.answers = [(5, 5)]
    request = h.add(200)
    output = h.scheduler.schedule()
    assert h.store.asked[0].shape[0] == 9
    (load,) = h.orders(output).loads
    assert [part.group for part in load.parts] == [0, 1]
    assert load.parts[0].hashes == tuple(request.block_hashes[0:2])
    assert load.parts[1].hashes == (request.block_hashes[1],), "a coarser block has the last hash in it"


def test_a_window_needs_its_end_only(harness: Make) -> None:
    h = harness(groups=[full_attention(0), sliding_window(1, window=64)])
    h.store.answers = [exist_answer([1] * 9, [0, 0, 0, 0, 0, 0, 0, 1, 1])]
    h.add(300)
    output = h.scheduler.schedule()
    full, window = h.orders(output).loads[0].parts
    assert len(full.block_ids) == 9
    assert len(window.block_ids) == 2, "63 tokens before token 288: two blocks"
    assert 0 not in window.block_ids, "the null block is never written"


def test_a_hole_in_the_window_shortens_the_hit(harness: Make) -> None:
    h = harness(groups=[full_attention(0), sliding_window(1, window=64)])
    h.store.answers = [exist_answer([1] * 9, [1, 1, 1, 1, 1, 1, 1, 0, 1])]
    h.add(300)
    full, window = h.orders(h.scheduler.schedule()).loads[0].parts
    assert len(full.block_ids) == 7
    assert len(window.block_ids) == 2


def test_a_hole_in_full_attention_ends_the_hit(harness: Make) -> None:
    h = harness(groups=[full_attention(0), sliding_window(1, window=64)])
    h.store.answers = [exist_answer([1, 1, 0] + [1] * 6, [1] * 9)]
    h.add(300)
    full, window = h.orders(h.scheduler.schedule()).loads[0].parts
    assert len(full.block_ids) == 2
    assert len(window.block_ids) == 2


def test_null_blocks_are_not_saved(harness: Make) -> None:
    h = harness(groups=[full_attention(0), sliding_window(1, window=64)])
    h.store.answers = [exist_answer([1] * 9, [1] * 9)]
    h.add(300, max_tokens=30)
    output = h.scheduler.schedule()
    h.answer(output, **load_done())
    ids: list[int] = []
    while "r" in h.scheduler.requests:
        output = h.scheduler.schedule()
        ids += [int(block) for job in h.orders(output).saves for part in job.parts for block in part.block_ids]
        h.answer(output, **h.saved(output))
    assert len(ids) == 2, "token 320 fills one block of each group"
    assert 0 not in ids


def test_unsupported_groups_serve_without_a_pool(harness: Make, caplog: pytest.LogCaptureFixture) -> None:
    import torch
    from vllm.v1.kv_cache_interface import ChunkedLocalAttentionSpec, KVCacheGroupSpec

    spec = ChunkedLocalAttentionSpec(
        block_size=32, num_kv_heads=2, head_size=32, dtype=torch.bfloat16, attention_chunk_size=64
    )
    with caplog.at_level("WARNING", "vllm.memcache_connector"):
        h = harness(groups=[full_attention(0), KVCacheGroupSpec(["layer1"], spec)])
    assert "ChunkedLocalAttentionSpec" in caplog.text
    h.add(100)
    output = h.scheduler.schedule()
    assert output.num_scheduled_tokens == {"r": 100}
    assert not h.orders(output).saves
    assert not h.orders(output).loads


# ---- the rest -----------------------------------------------------------------------------------------------------


def test_tensor_parallel_shards_must_all_have_a_block(harness: Make, models: dict[str, Path]) -> None:
    import dataclasses

    from memcache_connector.vllm.geometry import read_geometry
    from memcache_connector.vllm.lookup import PrefixLookup

    h = harness()
    geometry = dataclasses.replace(read_geometry(h.config, h.cache), shards=2, pipeline_ranks=2)
    side = h.connector._scheduler
    lookup = PrefixLookup(h.store, geometry, b"p" * 16, side._config, side._breaker, side.counters)
    request = h.add(100)
    prepared = lookup.prepare(request.block_hashes, request.num_tokens)
    assert prepared.keys.shape[0] == 3 * 4
    h.store.answers = [(7, 7)]
    assert lookup.poll(prepared, 0)
    assert prepared.found == 1, "the second block is there for three of four ranks"


def test_the_policy_fail_is_warned_of(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole

    from memcache_connector.vllm import MemCacheConnector

    h = Harness(models["llama"], monkeypatch)
    h.config.kv_transfer_config.kv_load_failure_policy = "fail"
    with caplog.at_level("WARNING", "vllm.memcache_connector"):
        MemCacheConnector(h.config, KVConnectorRole.SCHEDULER, h.cache).shutdown()
    assert "kv_load_failure_policy" in caplog.text


def test_resetting_asks_for_every_object_to_go(harness: Make) -> None:
    h = harness()
    assert h.scheduler.reset_prefix_cache(reset_connector=True)
    assert h.store.removed == 1


def test_resetting_can_be_refused(harness: Make) -> None:
    h = harness(reset_clears_pool=False)
    assert not h.scheduler.reset_prefix_cache(reset_connector=True)
    assert h.store.removed == 0


def test_shutdown_closes_the_store(harness: Make) -> None:
    h = harness()
    h.scheduler.shutdown()
    h.scheduler.shutdown()
    assert h.store.closed


def test_a_wrong_setting_stops_the_start(harness: Make) -> None:
    with pytest.raises(ValueError, match="did you mean 'lookup_timeout_ms'"):
        harness(lookup_timeout=3)
