"""The best any cache could do on a replay: nothing is ever forgotten, and nothing needs time to be stored."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Served:
    """One finished request on the clock of the replay (seconds)."""

    number: int
    sent_s: float
    first_token_s: float
    done_s: float
    prompt: Sequence[int]
    answer: Sequence[int]


@dataclass(frozen=True)
class Best:
    """Tokens of a request's prompt that need not be computed, at best, by the engine that prefills and by the one that
    decodes."""

    prefill_tokens: int
    decode_tokens: int


def best_possible(served: Iterable[Served], block_tokens: int) -> dict[int, Best]:
    """For each request, by number: whole leading blocks that were computed before it was sent.

    A prompt's blocks are there from its first token on; those that the answer completes, from its end on (the KV of
    the last token of an answer is never computed). An engine must compute at least one token of a prompt itself. The
    decoding engine gets its request when the prompt has just been computed elsewhere: all whole blocks can be had.
    """
    requests = list(served)
    known: set[tuple[int, ...]] = set()
    events: list[tuple[float, int, Served]] = []
    for request in requests:
        events += [(request.first_token_s, 0, request), (request.done_s, 1, request), (request.sent_s, 2, request)]
    best: dict[int, Best] = {}
    for _, kind, request in sorted(events, key=lambda event: (event[0], event[1], event[2].number)):
        if kind == 0:
            known.update(_chain(request.prompt, block_tokens))
        elif kind == 1:
            computed = [*request.prompt, *request.answer][: len(request.prompt) + len(request.answer) - 1]
            known.update(_chain(computed, block_tokens))
        else:
            blocks = 0
            chain = _chain(request.prompt[:-1], block_tokens)
            while blocks < len(chain) and chain[blocks] in known:
                blocks += 1
            best[request.number] = Best(blocks * block_tokens, len(chain) * block_tokens)
    return best


def _chain(tokens: Sequence[int], block_tokens: int) -> list[tuple[int, ...]]:
    """Every prefix of `tokens` that ends on a block boundary, shortest first."""
    return [tuple(tokens[:end]) for end in range(block_tokens, len(tokens) + 1, block_tokens)]
