"""The arithmetic of the table, and what it calls good."""

from __future__ import annotations

import dataclasses

import pytest

pytest.importorskip("aiohttp")

from demo import metrics, report
from demo.metrics import PromptTokens
from demo.replay import Outcome

BLOCK = 4
PAGE = """\
# HELP vllm:prompt_tokens_by_source_total Number of prompt tokens by source.
# TYPE vllm:prompt_tokens_by_source_total counter
vllm:prompt_tokens_by_source_total{engine="0",model_name="tiny",source="local_compute"} 90.0
vllm:prompt_tokens_by_source_total{engine="0",model_name="tiny",source="local_cache_hit"} 32.0
vllm:prompt_tokens_by_source_total{engine="0",model_name="tiny",source="external_kv_transfer"} 6.4e+01
vllm:prompt_tokens_by_source_total{engine="1",model_name="tiny",source="external_kv_transfer"} 1.0
vllm:prompt_tokens_by_source_created{engine="0",source="local_compute"} 1.7e+09
vllm:prompt_tokens_total{engine="0"} 999.0
"""


def outcome(turn: int, prompt: list[int], answer: list[int], cached: int, prefill_cached: int) -> Outcome:
    at = 10.0 * turn
    return Outcome(0, turn, prompt, answer, at, at + 1 + turn, at + 5, cached, prefill_cached)


FIRST = outcome(0, list(range(9)), [20], cached=8, prefill_cached=0)
SECOND = outcome(1, [*range(9), 20, 30, 31, 32], [21], cached=12, prefill_cached=8)
GOOD = [FIRST, SECOND]
PREFILL = PromptTokens(computed=14, engine_cache=3, pool=5)
DECODE = PromptTokens(computed=2, engine_cache=0, pool=20)


def result(outcomes: list[Outcome], without: list[Outcome] = GOOD, decode: PromptTokens = DECODE) -> report.Result:
    return report.evaluate(outcomes, without, PREFILL, decode, BLOCK)


def test_metrics_page_is_summed_by_source():
    assert metrics.parse(PAGE) == PromptTokens(computed=90, engine_cache=32, pool=65)
    assert metrics.parse("") == PromptTokens()
    assert metrics.parse(PAGE).since(PromptTokens(1, 2, 3)) == PromptTokens(89, 30, 62)


def test_a_good_run_has_no_shortcomings():
    good = result(GOOD)
    assert good.shortcomings() == []
    assert (good.requests, good.conversations, good.failed, good.identical) == (2, 1, 0, 2)
    assert good.prefill.best_tokens == 8
    assert good.decode.best_tokens == 8 + 12
    assert good.prefill.hit_rate == pytest.approx(8 / 22)
    assert good.ttft_with_s == (1.0, 2.0)
    assert "outputs identical: yes (2 of 2)" in report.table(good)


def test_one_block_less_than_the_best_is_accepted_and_more_is_not():
    one = dataclasses.replace(SECOND, prefill_cached_tokens=4)
    two = dataclasses.replace(SECOND, prefill_cached_tokens=0)
    assert result([FIRST, one]).shortcomings() == []
    assert "8 tokens more than necessary" in result([FIRST, two]).shortcomings()[0]
    assert result([FIRST, two]).shortcomings(exact_hits=False) == []


def test_a_different_token_is_told():
    other = dataclasses.replace(SECOND, answer=[22])
    bad = result([FIRST, other])
    assert bad.shortcomings() == ["1 answers differ from the run without a pool"]
    assert "outputs identical: NO (1 of 2)" in report.table(bad)


def test_a_failed_request_is_told_and_counts_as_different():
    failed = dataclasses.replace(SECOND, error="TimeoutError", answer=[])
    wrong = result([FIRST, failed]).shortcomings()
    assert wrong[0] == "1 requests failed"
    assert len(wrong) == 2


def test_an_unused_pool_is_told():
    assert result(GOOD, decode=PromptTokens(22, 0, 0)).shortcomings() == ["nothing was loaded from the pool"]


@pytest.mark.parametrize(("percent", "value"), [(50, 2.0), (95, 4.0), (1, 1.0), (75, 3.0)])
def test_percentile_is_nearest_rank(percent, value):
    assert report.percentile([4.0, 1.0, 3.0, 2.0], percent) == value
    assert report.percentile([], percent) == 0.0
