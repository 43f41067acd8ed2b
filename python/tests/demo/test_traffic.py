"""The generator keeps the statistics that were measured, and its scale."""

from __future__ import annotations

import statistics

import pytest

from demo import model
from demo import trace_statistics as trace
from demo.traffic import Conversation, Scale, Turn, generate, history, quantile

MANY = Scale(conversations=4000)


@pytest.fixture(scope="module")
def many() -> list[Conversation]:
    return generate(7, MANY)


def test_same_seed_same_workload_other_seed_other_workload():
    assert generate(3) == generate(3)
    assert generate(3) != generate(4)


def test_first_block_is_shared_by_all_and_the_second_by_few(many):
    block = MANY.block_tokens
    firsts = [conversation.turns[0].user_tokens for conversation in many]
    assert len({first[:block] for first in firsts}) == 1
    long = [first[block : 2 * block] for first in firsts if len(first) >= 2 * block]
    assert len(set(long)) > 0.85 * len(long)
    assert len(set(long)) < len(long), "branches share more than the system prompt"


def test_share_of_conversations_that_go_on(many):
    going_on = [sum(len(conversation.turns) > turns for conversation in many) for turns in range(4)]
    for turns, expected in enumerate(trace.NEXT_TURN[:3]):
        measured = going_on[turns + 1] / going_on[turns]
        # Some outgrow the model and end early, none goes on longer.
        assert 0.7 * expected < measured < 1.12 * expected


def test_length_quantiles_are_those_of_the_trace_scaled(many):
    firsts = [len(conversation.turns[0].user_tokens) for conversation in many]
    answers = [turn.answer_tokens for conversation in many for turn in conversation.turns]
    median_first = trace.FIRST_PROMPT_TOKENS[10] / MANY.length_divisor
    median_answer = trace.ANSWER_TOKENS[10] / MANY.length_divisor
    assert statistics.median(firsts) == pytest.approx(median_first, rel=0.1)
    assert statistics.median(answers) == pytest.approx(median_answer, rel=0.1)


def test_gap_median_is_that_of_the_trace_scaled(many):
    gaps = [
        later.arrival_s - earlier.arrival_s
        for conversation in many
        for earlier, later in zip(conversation.turns, conversation.turns[1:], strict=False)
    ]
    assert statistics.median(gaps) == pytest.approx(trace.GAP_S[10] / MANY.time_divisor, rel=0.15)


def test_everything_fits_the_model_and_the_window(many):
    window = trace.WINDOW_S / MANY.time_divisor
    for conversation in many:
        answers = [[5] * turn.answer_tokens for turn in conversation.turns]
        arrivals = [turn.arrival_s for turn in conversation.turns]
        assert arrivals == sorted(arrivals)
        assert arrivals[0] >= 0
        assert arrivals[-1] <= window + 1e-6
        for number, turn in enumerate(conversation.turns):
            prompt = history(conversation, number, answers)
            assert 1 <= turn.answer_tokens <= MANY.answer_tokens_max
            assert turn.user_tokens
            assert len(prompt) + turn.answer_tokens <= model.MAX_LENGTH
            assert min(prompt) >= model.FIRST_BYTE_TOKEN
            assert max(prompt) <= model.LAST_BYTE_TOKEN


def test_history_is_prompts_and_answers_without_what_was_forgotten():
    conversation = Conversation(0, (Turn(0.0, (1, 2), 3), Turn(1.0, (3,), 2, forget_tokens=1), Turn(2.0, (4,), 1)))
    answers = [[10, 11, 12], [20, 21]]
    assert history(conversation, 0, []) == [1, 2]
    assert history(conversation, 1, answers) == [1, 2, 10, 11, 3]
    assert history(conversation, 2, answers) == [1, 2, 10, 11, 3, 20, 21, 4]


def test_forgetting_more_than_the_answer_keeps_the_prompt():
    conversation = Conversation(0, (Turn(0.0, (1, 2), 1), Turn(1.0, (3,), 1, forget_tokens=9)))
    assert history(conversation, 1, [[7]]) == [1, 2, 3]


@pytest.mark.parametrize(("part", "value"), [(0.0, 10.0), (0.25, 15.0), (0.5, 20.0), (0.75, 30.0), (1.0, 40.0)])
def test_quantile_goes_in_straight_lines(part, value):
    assert quantile((10.0, 20.0, 40.0), part) == value
