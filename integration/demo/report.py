"""From what happened to the table that the demo prints, and whether it is good."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from demo.metrics import PromptTokens
from demo.oracle import Served, best_possible
from demo.replay import Outcome

LABEL_WIDTH = 38
COLUMN_WIDTH = 14


@dataclass(frozen=True)
class EngineResult:
    """How one of the two engines came by its prompt tokens, and the best it could have done."""

    tokens: PromptTokens
    best_tokens: int  # not to be computed, by a cache that never forgets
    shortfall_max: int  # largest difference between a request and its best, in tokens

    @property
    def hit_rate(self) -> float:
        return share(self.tokens.pool + self.tokens.engine_cache, self.tokens.total)

    @property
    def best_rate(self) -> float:
        return share(self.best_tokens, self.tokens.total)


@dataclass(frozen=True)
class Result:
    """Everything the table says."""

    requests: int
    conversations: int
    failed: int
    identical: int
    prefill: EngineResult
    decode: EngineResult
    ttft_with_s: tuple[float, float]  # 50 % and 95 %
    ttft_without_s: tuple[float, float]
    block_tokens: int

    def shortcomings(self, exact_hits: bool = True) -> list[str]:
        """What is wrong, in words; empty when the demo is good.

        `exact_hits`: also compare the hits with the best possible (not when the pool was made to forget on purpose).
        """
        wrong: list[str] = []
        if self.failed:
            wrong.append(f"{self.failed} requests failed")
        if self.identical != self.requests:
            wrong.append(f"{self.requests - self.identical} answers differ from the run without a pool")
        if self.decode.tokens.pool == 0:
            wrong.append("nothing was loaded from the pool")
        if exact_hits:
            for name, engine in (("prefill", self.prefill), ("decode", self.decode)):
                if engine.shortfall_max > self.block_tokens:
                    wrong.append(
                        f"{name}: a request computed {engine.shortfall_max} tokens more than necessary "
                        f"(at most {self.block_tokens}, one block, is expected)"
                    )
        return wrong

    def to_json(self) -> dict[str, Any]:
        def engine(result: EngineResult) -> dict[str, Any]:
            return {
                "pool_tokens": result.tokens.pool,
                "engine_cache_tokens": result.tokens.engine_cache,
                "computed_tokens": result.tokens.computed,
                "best_tokens": result.best_tokens,
                "shortfall_tokens_max": result.shortfall_max,
            }

        return {
            "requests": self.requests,
            "failed": self.failed,
            "identical": self.identical,
            "prefill": engine(self.prefill),
            "decode": engine(self.decode),
            "ttft_with_pool_s": self.ttft_with_s,
            "ttft_without_pool_s": self.ttft_without_s,
        }


def evaluate(
    with_pool: Sequence[Outcome],
    without_pool: Sequence[Outcome],
    prefill: PromptTokens,
    decode: PromptTokens,
    block_tokens: int,
) -> Result:
    """Compare the replay over the pool with the one without, request by request."""
    best = best_possible(
        [
            Served(number, it.sent_s, it.first_token_s, it.done_s, it.prompt, it.answer)
            for number, it in enumerate(with_pool)
        ],
        block_tokens,
    )
    good = [(number, it) for number, it in enumerate(with_pool) if it.error is None]
    prefill_short = [best[number].prefill_tokens - (it.prefill_cached_tokens or 0) for number, it in good]
    decode_short = [best[number].decode_tokens - it.cached_tokens for number, it in good]
    return Result(
        requests=len(with_pool),
        conversations=len({it.conversation for it in with_pool}),
        failed=len(with_pool) - len(good),
        identical=sum(
            a.error is None and b.error is None and a.prompt == b.prompt and a.answer == b.answer
            for a, b in zip(with_pool, without_pool, strict=True)
        ),
        prefill=EngineResult(prefill, sum(it.prefill_tokens for it in best.values()), max([0, *prefill_short])),
        decode=EngineResult(decode, sum(it.decode_tokens for it in best.values()), max([0, *decode_short])),
        ttft_with_s=_ttft(with_pool),
        ttft_without_s=_ttft(without_pool),
        block_tokens=block_tokens,
    )


def table(result: Result) -> str:
    """The result as aligned text, one fact a line."""
    engines = (result.prefill, result.decode)
    milliseconds = [f"{seconds * 1000:.0f} ms" for seconds in (*result.ttft_with_s, *result.ttft_without_s)]
    same = "yes" if result.identical == result.requests else "NO"
    lines = [
        row("requests", f"{result.requests:,}", f"in {result.conversations:,} chats"),
        row("failed", f"{result.failed:,}"),
        "",
        row("", "prefill", "decode"),
        row("prompt tokens", *(f"{it.tokens.total:,}" for it in engines)),
        row("  loaded from the pool", *(f"{it.tokens.pool:,}" for it in engines)),
        row("  found in the engine's own cache", *(f"{it.tokens.engine_cache:,}" for it in engines)),
        row("  computed", *(f"{it.tokens.computed:,}" for it in engines)),
        row("hit rate", *(f"{it.hit_rate:.1%}" for it in engines)),
        row("  best possible for this workload", *(f"{it.best_rate:.1%}" for it in engines)),
        row("  farthest from best, of any request", *(f"{it.shortfall_max} tokens" for it in engines)),
        "",
        row("", "p50", "p95"),
        row("time to first token with the pool", *milliseconds[:2]),
        row("  without (one engine, no connector)", *milliseconds[2:]),
        "",
        f"outputs identical: {same} ({result.identical} of {result.requests})",
    ]
    return "\n".join(line.rstrip() for line in lines)


def row(label: str, *columns: str) -> str:
    return label.ljust(LABEL_WIDTH) + "".join(column.rjust(COLUMN_WIDTH) for column in columns)


def share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def percentile(values: Sequence[float], percent: float) -> float:
    """Nearest-rank percentile; 0.0 of nothing."""
    ordered = sorted(values)
    if not ordered:
        return 0.0
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(0, int(rank) - 1)]


def _ttft(outcomes: Sequence[Outcome]) -> tuple[float, float]:
    times = [it.ttft_s for it in outcomes if it.error is None]
    return percentile(times, 50), percentile(times, 95)
