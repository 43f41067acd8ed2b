"""Many requests, few KV blocks, a pool: preemptions, waiting for blocks, loads and saves at once."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SEED = 5


def prompts() -> list[list[int]]:
    """Sixteen prompts of 41 to 400 tokens that begin in one of three ways."""
    dice = random.Random(SEED)

    def tokens(count: int) -> list[int]:
        return [dice.randrange(3, 250) for _ in range(count)]

    roots = [tokens(dice.randrange(40, 250)) for _ in range(3)]
    return [dice.choice(roots) + tokens(dice.randrange(1, 150)) for _ in range(16)]


@pytest.mark.timeout(600)
def test_under_pressure_nothing_changes_and_nothing_leaks(engine: Callable[..., Any], models: dict[str, Path]) -> None:
    plain = engine(models["llama"], None)
    expected = plain.generate(*prompts(), max_tokens=40)
    plain.close()
    one = engine(models["llama"], {}, num_gpu_blocks_override=36)
    pool = one.core.scheduler.kv_cache_manager.block_pool
    free = pool.get_num_free_blocks()
    for _ in range(2):
        assert one.generate(*prompts(), max_tokens=40) == expected
        one.settle()
        assert pool.get_num_free_blocks() == free
        assert one.reset()
    assert one.metric("num_preemptions") > 0, "not enough pressure to mean anything"
    assert one.metric("memcache_loaded_blocks") > 0
    assert one.metric("memcache_load_failures") == 0
