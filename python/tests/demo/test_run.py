"""The whole course of the demo with stand-in engines: what it calls good, what it does not, and how it fails."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("aiohttp")

from demo import components, run
from demo.components import Engine
from demo.processes import ComponentFailed
from demo.progress import Progress
from demo.run import Demo, Options
from demo.traffic import Conversation, Turn

STAND_IN = Path(__file__).with_name("stand_in_engine.py")
SYSTEM = tuple(range(32))
# A listening socket is all that the course of the demo wants of a MetaService.
META = "import socket, time; s = socket.create_server(('127.0.0.1', {port})); print('up', flush=True); time.sleep(600)"

pytestmark = pytest.mark.integration


def workload(conversations: int, spread_s: float) -> list[Conversation]:
    return [
        Conversation(
            number,
            (
                Turn(number * spread_s, (*SYSTEM, *([number] * 70)), 40),
                Turn(number * spread_s + 0.2, (5, 6, 7), 9, forget_tokens=3),
                Turn(number * spread_s + 0.4, (8,) * 40, 5),
            ),
        )
        for number in range(conversations)
    ]


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """Make the demo run stand-ins; returns a function that sets extra words for one of the engines."""
    pool = tmp_path / "pool"
    pool.mkdir()
    extra: dict[str, list[str]] = {}

    def engine_command(engine: Engine, _: Path, transfer: dict[str, object] | None) -> list[str]:
        where = "-" if transfer is None else str(pool)
        return [sys.executable, str(STAND_IN), str(engine.port), where, *extra.get(engine.name, [])]

    def ensure_model(folder: Path) -> bool:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "made_from.json").write_text("{}")
        return False

    monkeypatch.setattr(components, "engine_command", engine_command)
    monkeypatch.setattr(components, "meta_command", lambda port: [sys.executable, "-c", META.format(port=port)])
    monkeypatch.setattr(components, "local_command", lambda *_: [sys.executable, "-c", "import time; time.sleep(600)"])
    monkeypatch.setattr(run.model, "ensure_model", ensure_model)
    monkeypatch.setattr(run, "generate", lambda *_: workload(4, 0.1))
    return lambda name, *words: extra.update({name: list(words)})


def play(tmp_path: Path, *, kill_meta: bool = False, reuse: bool = False) -> bool:
    options = Options(seed=1, conversations=4, kill_meta=kill_meta, reuse_baseline=reuse, state=tmp_path / "state")
    return asyncio.run(Demo(options, Progress()).run())


def test_a_good_run_is_called_good_and_leaves_its_numbers(stand_in, tmp_path, capsys):
    assert play(tmp_path)
    said = capsys.readouterr().out
    assert "outputs identical: yes (12 of 12)" in said
    assert "NOT AS EXPECTED" not in said
    summary = json.loads((tmp_path / "state" / "results" / "summary.json").read_text())
    assert summary["requests"] == 12
    assert summary["prefill"]["shortfall_tokens_max"] <= 32
    assert summary["decode"]["pool_tokens"] == summary["decode"]["best_tokens"]


def test_the_answers_without_a_pool_can_be_those_of_an_earlier_run(stand_in, tmp_path, capsys):
    assert play(tmp_path)
    (tmp_path / "state" / "logs" / "baseline.log").unlink()
    assert play(tmp_path, reuse=True)
    assert not (tmp_path / "state" / "logs" / "baseline.log").exists()
    assert "those of an earlier run" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("engine", "words", "complaint"),
    [
        ("decode", ["--odd", "1"], "12 answers differ"),
        ("decode", ["--forgetful"], "nothing was loaded from the pool"),
        ("prefill", ["--forgetful"], "prefill: a request computed"),
    ],
)
def test_what_is_not_good_is_told(stand_in, tmp_path, capsys, engine, words, complaint):
    stand_in(engine, *words)
    assert not play(tmp_path)
    assert complaint in capsys.readouterr().out


@pytest.mark.parametrize("at", ["1", "6"], ids=["before the replay", "within the replay"])
def test_an_engine_that_dies_ends_the_demo_with_its_log(stand_in, tmp_path, at):
    stand_in("decode", "--die-after", at)
    with pytest.raises(ComponentFailed) as failure:
        play(tmp_path)
    assert "decode ended with status 7" in str(failure.value)
    assert "ending as it was told" in str(failure.value)


def test_the_metaservice_is_killed_and_started_again(stand_in, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("demo.outage.AWAY_S", 0.5)
    monkeypatch.setattr("demo.outage.JOIN_AGAIN_S", 0.2)
    monkeypatch.setattr(run, "generate", lambda *_: workload(12, 0.3))
    assert play(tmp_path, kill_meta=True)
    assert (tmp_path / "state" / "logs" / "meta.log").read_text().split() == ["up", "up"]
    assert "tokens loaded from the pool after" in capsys.readouterr().out
