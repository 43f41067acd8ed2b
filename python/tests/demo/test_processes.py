"""Components are stopped whatever happens, with everything they started, and failures name their log."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from demo.processes import ComponentFailed, Processes

WAIT_S = 20.0
# Starts a child of its own, tells its number, and does not react to SIGTERM.
STUBBORN = (
    "import os, signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
    "print(child.pid, flush=True); time.sleep(600)"
)


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_stubborn_group_is_gone_when_the_context_ends(tmp_path, monkeypatch):
    monkeypatch.setattr("demo.processes.STOP_GRACE_S", 0.5)
    processes = Processes(tmp_path)
    with processes:
        component = processes.start("stubborn", python(STUBBORN), os.environ)
        assert eventually(lambda: component.log.read_text().strip().isdigit())
        child = int(component.log.read_text())
    assert component.process.returncode == -signal.SIGKILL
    assert eventually(lambda: gone(child))


def test_components_are_stopped_when_the_demo_is_interrupted(tmp_path):
    processes = Processes(tmp_path)
    sleeper = processes.__enter__().start("sleeper", python("import time; time.sleep(600)"), os.environ)
    processes.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert sleeper.process.returncode == -signal.SIGTERM


def test_a_component_that_ends_is_told_with_its_log(tmp_path):
    with Processes(tmp_path) as processes:
        component = processes.start("short", python("print('the reason'); raise SystemExit(3)"), os.environ)
        component.process.wait(WAIT_S)
        with pytest.raises(ComponentFailed) as failure:
            processes.check()
    message = str(failure.value)
    assert "short ended with status 3" in message
    assert str(tmp_path / "short.log") in message
    assert "the reason" in message


def test_a_killed_component_may_be_started_again_and_is_watched_again(tmp_path):
    with Processes(tmp_path) as processes:
        first = processes.start("it", python("print('first', flush=True); import time; time.sleep(600)"), os.environ)
        assert eventually(lambda: "first" in first.log.read_text())
        processes.kill("it")
        assert first.process.returncode == -signal.SIGKILL
        processes.check()
        second = processes.start("it", python("print('second')"), os.environ)
        second.process.wait(WAIT_S)
        with pytest.raises(ComponentFailed):
            processes.check()
        assert second.log.read_text().split() == ["first", "second"]
