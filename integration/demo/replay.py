"""Plays a workload against an OpenAI-style server and writes down what happened to every request."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import aiohttp

from demo.proxy import USAGE_HEADER
from demo.traffic import Conversation, history

REQUEST_TIMEOUT_S = 180.0
# A user does not answer at once. The clock runs 50 times faster than in the trace but the engines do not, so that
# without a pause some next turns would be sent before the end of the answer that they contain.
PAUSE_S = 0.3
# Engines are warmed up with prompts shorter than a block, which leave nothing in any cache.
WARM_UP_TOKENS = 20


@dataclass(frozen=True)
class Outcome:
    """One request: what was asked, what came back, and when (seconds from the start of the replay)."""

    conversation: int
    turn: int
    prompt: list[int]
    answer: list[int]
    sent_s: float
    first_token_s: float
    done_s: float
    cached_tokens: int  # by the engine that answered
    prefill_cached_tokens: int | None  # by the engine that prefilled, None without one
    error: str | None = None

    @property
    def ttft_s(self) -> float:
        return self.first_token_s - self.sent_s

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class RequestFailed(Exception):
    """A request that did not end with the tokens that were asked for."""


@dataclass
class _Answer:
    tokens: list[int]
    first_token_at: float = 0.0
    cached_tokens: int = 0
    prefill_cached_tokens: int | None = None


class Replay:
    """One pass over a workload.

    `answers` fixes the history: the prompt of a later turn contains the answer given there (by an earlier pass), so
    that two passes ask exactly the same. Without it, the answers of this pass are used.
    """

    def __init__(
        self,
        url: str,
        workload: Sequence[Conversation],
        answers: dict[tuple[int, int], list[int]] | None = None,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self._url = url
        self._workload = workload
        self._answers = answers
        self._on_progress = on_progress
        self._outcomes: list[Outcome] = []
        self._total = sum(len(conversation.turns) for conversation in workload)
        self._start = 0.0

    async def run(self) -> list[Outcome]:
        """Play everything; outcomes are ordered by conversation and turn, failures are among them."""
        async with _session() as session:
            self._start = time.monotonic()
            async with asyncio.TaskGroup() as group:
                for conversation in self._workload:
                    group.create_task(self._converse(session, conversation))
        return sorted(self._outcomes, key=lambda outcome: (outcome.conversation, outcome.turn))

    def _now(self) -> float:
        return time.monotonic() - self._start

    async def _converse(self, session: aiohttp.ClientSession, conversation: Conversation) -> None:
        given: list[list[int]] = []
        free_from = 0.0
        for turn, step in enumerate(conversation.turns):
            await asyncio.sleep(max(step.arrival_s, free_from) - self._now())
            prompt = history(conversation, turn, given)
            outcome = await self._ask(session, conversation.number, turn, prompt, step.answer_tokens)
            self._outcomes.append(outcome)
            self._on_progress(len(self._outcomes), self._total)
            given.append(outcome.answer if self._answers is None else self._answers[conversation.number, turn])
            free_from = self._now() + PAUSE_S

    async def _ask(
        self, session: aiohttp.ClientSession, conversation: int, turn: int, prompt: list[int], answer_tokens: int
    ) -> Outcome:
        sent = self._now()
        answer = _Answer([])
        error = None
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                answer = await complete(session, self._url, prompt, answer_tokens)
        except (aiohttp.ClientError, TimeoutError, RequestFailed) as failure:
            error = f"{type(failure).__name__}: {failure}"
        first = answer.first_token_at - self._start if error is None else self._now()
        return Outcome(
            conversation, turn, prompt, answer.tokens, sent, first, self._now(),
            answer.cached_tokens, answer.prefill_cached_tokens, error,
        )  # fmt: skip


async def complete(session: aiohttp.ClientSession, url: str, prompt: list[int], answer_tokens: int) -> _Answer:
    """One greedy completion of token ids, streamed."""
    body = {
        "model": "tiny",
        "prompt": prompt,
        "max_tokens": answer_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    answer = _Answer([])
    async with session.post(f"{url}/v1/completions", json=body) as response:
        if response.status != 200:
            raise RequestFailed(f"status {response.status}: {(await response.text())[:300]}")
        if USAGE_HEADER in response.headers:
            answer.prefill_cached_tokens = cached_tokens(json.loads(response.headers[USAGE_HEADER]))
        async for event in _events(response):
            if "error" in event:
                raise RequestFailed(str(event["error"]))
            for choice in event.get("choices", []):
                if choice.get("token_ids") and not answer.tokens:
                    answer.first_token_at = time.monotonic()
                answer.tokens += choice.get("token_ids") or []
            if event.get("usage"):
                answer.cached_tokens = cached_tokens(event["usage"])
    if len(answer.tokens) != answer_tokens:
        raise RequestFailed(f"{len(answer.tokens)} tokens instead of {answer_tokens}")
    return answer


def cached_tokens(usage: dict[str, Any]) -> int:
    """Prompt tokens that the engine did not compute, from any cache."""
    return int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)


async def warm_up(*urls: str) -> None:
    """Let every engine load its kernels, so that the first requests of the replay are like the others."""
    async with _session() as session:
        for url in urls:
            for _ in range(2):
                async with asyncio.timeout(REQUEST_TIMEOUT_S):
                    await complete(session, url, [3] * WARM_UP_TOKENS, 4)


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    """The JSON objects of a server-sent event stream."""
    async for line in response.content:
        text = line.decode().strip()
        if text.startswith("data:") and text != "data: [DONE]":
            yield json.loads(text.removeprefix("data:"))


def _session() -> aiohttp.ClientSession:
    # Long prompts come back as long events: lines must not be limited to the default 128 KiB.
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), read_bufsize=1 << 20)
