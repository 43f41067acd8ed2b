"""A seeded multi-turn chat workload with the statistics of a real trace, scaled down to a tiny model.

Lengths are divided by 16, so that a 512-token block of the trace is one 32-token block of the engine; time is divided
by 50, so that its hour takes about 70 seconds; one conversation in a hundred is played. The ratio of gap to window,
turns, sharing and the shapes of all lengths stay as measured (trace_statistics.py).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from demo import model
from demo import trace_statistics as trace


@dataclass(frozen=True)
class Scale:
    """How far the trace is shrunk; the defaults fit the tiny model and two cores."""

    conversations: int = 80
    length_divisor: int = 16
    time_divisor: float = 50.0
    prompt_tokens_max: int = 1792  # longer prompts are cut: with the longest answer they fit the model
    answer_tokens_max: int = 128
    block_tokens: int = 32


@dataclass(frozen=True)
class Turn:
    """One request of a conversation. Its prompt is the history so far and `user_tokens`."""

    arrival_s: float  # from the start of the replay
    user_tokens: tuple[int, ...]
    answer_tokens: int  # how many tokens the engine is asked for
    forget_tokens: int = 0  # how many tokens at the end of the previous answer the history leaves out


@dataclass(frozen=True)
class Conversation:
    """Turns in order; the first one's `user_tokens` is the whole first prompt, system prompt included."""

    number: int
    turns: tuple[Turn, ...] = field(default_factory=tuple)


def history(conversation: Conversation, turn: int, answers: Sequence[Sequence[int]]) -> list[int]:
    """Prompt tokens of a turn, given the answers to the earlier ones."""
    prompt: list[int] = []
    for number, step in enumerate(conversation.turns[: turn + 1]):
        if number > 0:
            answer = answers[number - 1]
            prompt += answer[: max(0, len(answer) - step.forget_tokens)]
        prompt += step.user_tokens
    return prompt


def generate(seed: int, scale: Scale | None = None) -> list[Conversation]:
    """The workload of a seed: conversations ordered by their first arrival."""
    return _Generator(seed, scale or Scale()).conversations()


class _Generator:
    def __init__(self, seed: int, scale: Scale) -> None:
        self.scale = scale
        self.random = random.Random(seed)
        self.window_s = trace.WINDOW_S / scale.time_divisor
        self.system = self._words(trace.SHARED_SYSTEM_BLOCKS * scale.block_tokens)

    def conversations(self) -> list[Conversation]:
        plans = sorted((self._arrivals() for _ in range(self.scale.conversations)), key=lambda plan: plan[0])
        made: list[Conversation] = []
        for number, arrivals in enumerate(plans):
            made.append(Conversation(number, tuple(self._turns(arrivals, made))))
        return made

    def _arrivals(self) -> list[float]:
        """Arrival times of a conversation's turns: gaps first, then a start that lets it end within the window."""
        gaps: list[float] = []
        while self.random.random() < self._next_turn(len(gaps)):
            gap = quantile(trace.GAP_S, self.random.random()) / self.scale.time_divisor
            if sum(gaps) + gap > self.window_s:
                break
            gaps.append(gap)
        at = self.random.uniform(0.0, self.window_s - sum(gaps))
        arrivals = [at]
        for gap in gaps:
            at += gap
            arrivals.append(at)
        return arrivals

    @staticmethod
    def _next_turn(turn: int) -> float:
        return trace.NEXT_TURN[min(turn, len(trace.NEXT_TURN) - 1)]

    def _turns(self, arrivals: list[float], earlier: Sequence[Conversation]) -> list[Turn]:
        limit = self.scale.prompt_tokens_max
        turns: list[Turn] = []
        used = 0
        for number, arrival_s in enumerate(arrivals):
            answer = min(self.scale.answer_tokens_max, self._length(trace.ANSWER_TOKENS))
            forget = 0
            if number == 0:
                user = self._first_prompt(earlier)
            else:
                append = quantile(trace.APPEND_TOKENS, self.random.random()) / self.scale.length_divisor
                forget = max(0, round(-append))
                user = self._words(max(1, round(append)))
                if used + len(user) > limit:
                    break  # the conversation has outgrown the model
            turns.append(Turn(arrival_s, tuple(user), answer, forget))
            used += len(user) + answer
        return turns

    def _first_prompt(self, earlier: Sequence[Conversation]) -> list[int]:
        length = min(self.scale.prompt_tokens_max, self._length(trace.FIRST_PROMPT_TOKENS))
        prompt = list(self.system)
        if earlier and self.random.random() < trace.BRANCH:
            trunk = self.random.choice(earlier).turns[0].user_tokens
            prompt = list(
                trunk[: max(len(prompt), round(len(trunk) * quantile(trace.BRANCH_SHARE, self.random.random())))]
            )
        return prompt + self._words(max(1, length - len(prompt)))

    def _length(self, quantiles: Sequence[float]) -> int:
        return max(1, round(quantile(quantiles, self.random.random()) / self.scale.length_divisor))

    def _words(self, count: int) -> list[int]:
        return [self.random.randint(model.FIRST_BYTE_TOKEN, model.LAST_BYTE_TOKEN) for _ in range(count)]


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0..1) of a distribution lies, straight lines between evenly spaced quantiles."""
    place = share * (len(values) - 1)
    low = min(int(place), len(values) - 2)
    return values[low] + (values[low + 1] - values[low]) * (place - low)
