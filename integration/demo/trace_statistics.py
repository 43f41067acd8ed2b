"""What was measured in a real conversation trace, and all that the generator knows about it.

The trace: 12,031 chat requests of one hour (58.95 minutes; clock in steps of 3 s), each with its arrival time, prompt
and answer length in tokens, and one number for every started 512-token block of the prompt; equal numbers mean equal
blocks after equal beginnings.

How it was read:

* The *predecessor* of a request is the latest earlier one with which it shares its longest run of leading blocks, when
  that run is two blocks or more (the first block is the same in all 12,031 requests: a system prompt).
* A request is the *next turn* of its predecessor when it shares all whole blocks of it and is not shorter: 3,951
  requests. Chains of turns are conversations: 8,080 of them.
* 707 further requests share only a part of their predecessor. Here they begin a conversation of their own: a *branch*
  (an edited or shared document, an answer asked for again from an earlier point).
* *Append* is what a next turn has beyond the prompt and the answer of its predecessor: the user's new words. It is
  negative for 11 % of them: part of the answer was left out of the history.
* *Gap* is the time from the arrival of a request to the arrival of its next turn.

Lengths and gaps are given as 21 quantiles, from 0 % to 100 % in steps of 5 %.
"""

from __future__ import annotations

WINDOW_S = 3537.0
CONVERSATIONS = 8080
BLOCK_TOKENS = 512
SHARED_SYSTEM_BLOCKS = 1

# Probability that a conversation has another turn after its first, second, ... The last value is for all later ones
# (they vary between 0.68 and 0.87, of ever fewer conversations).
NEXT_TURN = (0.253, 0.387, 0.488, 0.558, 0.605, 0.662, 0.744, 0.79)

# 707 of the 8,080 conversations begin as a branch; quantiles in steps of 10 % of the shared part of the predecessor.
BRANCH = 707 / 8080
BRANCH_SHARE = (0.01, 0.07, 0.10, 0.13, 0.17, 0.23, 0.30, 0.41, 0.56, 0.90, 0.99)

FIRST_PROMPT_TOKENS = (
    *(891, 898, 908, 977, 1179, 1491, 2216, 3561, 4403, 5113, 5994),
    *(7194, 8622, 10242, 12162, 14361, 17061, 20531, 26501, 38664, 126195),
)
ANSWER_TOKENS = (
    *(1, 10, 24, 46, 100, 156, 213, 256, 291, 322, 350),
    *(375, 399, 423, 447, 472, 504, 543, 597, 698, 2000),
)
APPEND_TOKENS = (
    *(-1291, -20, -4, 6, 7, 9, 11, 13, 16, 20, 26),
    *(34, 52, 90, 173, 359, 695, 2552, 4203, 6922, 91467),
)
GAP_S = (
    *(0.0, 27.0, 39.0, 51.0, 57.0, 66.0, 75.0, 84.0, 96.0, 108.0, 123.0),
    *(141.0, 162.0, 189.0, 225.0, 267.0, 318.0, 387.0, 474.0, 606.0, 3030.0),
)
