"""The best possible is computed by hand here."""

from __future__ import annotations

import itertools
import random

from demo.oracle import Served, best_possible

BLOCK = 4


def served(number: int, prompt: list[int], answer: list[int], sent: float, first: float, done: float) -> Served:
    return Served(number, sent, first, done, prompt, answer)


def test_nothing_is_known_at_first_and_the_last_token_is_always_computed():
    prompt = list(range(8))
    best = best_possible([served(0, prompt, [9], 0, 1, 2), served(1, prompt, [9], 3, 4, 5)], BLOCK)
    assert best[0].prefill_tokens == 0
    assert best[1].prefill_tokens == 4, "of eight tokens one must be computed, so one whole block is left"
    assert best[0].decode_tokens == 4


def test_prompt_counts_from_its_first_token_on_not_before():
    prompt = list(range(9))
    early = best_possible([served(0, prompt, [1], 0.0, 2.0, 3.0), served(1, prompt, [1], 1.9, 4.0, 5.0)], BLOCK)
    late = best_possible([served(0, prompt, [1], 0.0, 2.0, 3.0), served(1, prompt, [1], 2.1, 4.0, 5.0)], BLOCK)
    assert early[1].prefill_tokens == 0
    assert late[1].prefill_tokens == 8


def test_answer_fills_blocks_but_its_last_token_has_no_kv():
    first = served(0, [1, 2, 3, 4, 5], [6, 7, 8], 0, 1, 2)  # eight tokens, seven with KV
    short = best_possible([first, served(1, [1, 2, 3, 4, 5, 6, 7, 8, 9], [0], 3, 4, 5)], BLOCK)
    assert short[1].prefill_tokens == 4
    longer = served(0, [1, 2, 3, 4, 5], [6, 7, 8, 9], 0, 1, 2)
    full = best_possible([longer, served(1, [1, 2, 3, 4, 5, 6, 7, 8, 9], [0], 3, 4, 5)], BLOCK)
    assert full[1].prefill_tokens == 8


def test_block_counts_only_after_the_same_beginning():
    first = served(0, [1, 1, 1, 1, 2, 2, 2, 2, 3], [0], 0, 1, 2)
    other = served(1, [9, 9, 9, 9, 2, 2, 2, 2, 3], [0], 3, 4, 5)
    assert best_possible([first, other], BLOCK)[1].prefill_tokens == 0


def test_against_a_naive_count_on_random_sequences():
    rng = random.Random(5)
    for _ in range(50):
        requests = []
        for number in range(8):
            prompt = [rng.randint(0, 1) for _ in range(rng.randint(1, 14))]
            answer = [rng.randint(0, 1) for _ in range(rng.randint(1, 6))]
            requests.append(served(number, prompt, answer, 3.0 * number, 3.0 * number + 1, 3.0 * number + 2))
        best = best_possible(requests, BLOCK)
        for request, before in ((requests[n], requests[:n]) for n in range(8)):
            texts = [[*it.prompt, *it.answer[:-1]] for it in before]
            longest = max((_common(text, request.prompt[:-1]) for text in texts), default=0)
            assert best[request.number].prefill_tokens == longest // BLOCK * BLOCK


def _common(left: list[int], right: list[int]) -> int:
    return len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False))))
