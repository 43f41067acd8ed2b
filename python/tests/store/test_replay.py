"""Replays of traces from the command line."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from memcache.cli import main

BLOCK = 512


def line(at_ms: int, *blocks: int) -> str:
    return json.dumps({"timestamp": at_ms, "input_length": BLOCK * len(blocks), "hash_ids": blocks}) + "\n"


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Chains of five blocks that come back after 20 others have: 120 different ones."""
    text = "".join(line(1000 * number, *range(number % 20 * 5, number % 20 * 5 + 5)) for number in range(200))
    (tmp_path / "trace.jsonl").write_text(text)
    return tmp_path / "trace.jsonl"


def test_each_policy_is_replayed_at_each_capacity_and_drawn(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = (64 * BLOCK, 1000 * BLOCK)
    file = tmp_path / "plot.svg"
    assert (
        main(["replay", str(trace), "--capacity-tokens", f"{sizes[0]},{sizes[1]}", "--json", "--plot", str(file)]) == 0
    )
    rows = json.loads(capsys.readouterr().out)
    rates = {(row["policy"], row["capacity_tokens"]): row["hit_rate"] for row in rows}
    assert len(rates) == 8
    # 100 blocks in rounds: none is left in 64 when it comes back, if the longest unused go first.
    assert rates["lru", sizes[0]] == 0
    assert rates["clairvoyant", sizes[0]] > 0.4
    assert {rates[policy, sizes[1]] for policy in ("lru", "s3fifo", "adaptive", "clairvoyant")} == {0.9}
    drawn = ElementTree.parse(file).getroot()
    assert sum(1 for one in drawn.iter() if one.tag.endswith("polyline")) == 4

    assert main(["replay", str(trace), "--capacity-tokens", str(sizes[1]), "--policy", "lru"]) == 0
    assert capsys.readouterr().out.split() == ["tokens", "blocks", "lru", str(sizes[1]), "1000", "0.9000"]


@pytest.mark.parametrize(
    ("text", "capacity", "want"),
    [
        ("{}", "512000", "trace.jsonl: line 1: not a request"),
        (line(5, 1) + line(4, 1), "512000", "trace.jsonl: line 2: timestamp 4 is before"),
        ('{"timestamp": 0, "input_length": "a", "hash_ids": []}', "512000", "line 1"),
        (line(5, 1), "512000,many", "--capacity-tokens '512000,many'"),
        (line(5, 1), "1", "capacity of 1 tokens; want "),
    ],
)
def test_what_cannot_be_replayed_is_named(
    text: str, capacity: str, want: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "trace.jsonl").write_text(text)
    assert main(["replay", str(tmp_path / "trace.jsonl"), "--capacity-tokens", capacity]) == 2
    assert want in capsys.readouterr().err


def test_a_trace_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(tmp_path / "none"), "--capacity-tokens", "512000"]) == 2
    assert f"{tmp_path / 'none'}: " in capsys.readouterr().err
