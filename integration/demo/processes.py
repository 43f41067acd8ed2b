"""Child processes of the demo: each in its own group, with a log file, and never left behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

STOP_GRACE_S = 10.0
TAIL_LINES = 25
PR_SET_PDEATHSIG = 1


class ComponentFailed(Exception):
    """A component of the demo died or did not get ready; the message names its log and shows the end of it."""


@dataclass
class Component:
    """One running child and where it writes."""

    name: str
    command: list[str]
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def failure(self, what: str) -> ComponentFailed:
        lines = self.log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
        tail = "\n".join(f"    {line}" for line in lines) or "    (empty)"
        return ComponentFailed(f"{self.name} {what}; its log is {self.log} and ends with:\n{tail}")


class Processes:
    """Starts, watches and stops the components. Leaving the context stops all of them, whatever happened."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._components: dict[str, Component] = {}
        self._expected_dead: set[str] = set()

    def __enter__(self) -> Processes:
        self._logs.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop_all()

    def start(self, name: str, command: Sequence[str | Path], environment: Mapping[str, str]) -> Component:
        """Start a component under a free name; its output goes to `<name>.log`, appended when it is a restart."""
        log = self._logs / f"{name}.log"
        again = name in self._components
        words = [str(word) for word in command]
        with log.open("ab" if again else "wb") as output:
            process = subprocess.Popen(
                words,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        component = Component(name, words, log, process)
        self._components[name] = component
        self._expected_dead.discard(name)
        return component

    def check(self) -> None:
        """Raise ComponentFailed when a component that should run has ended."""
        for component in self._components.values():
            if not component.running and component.name not in self._expected_dead:
                raise component.failure(f"ended with status {component.process.returncode}")

    def kill(self, name: str) -> None:
        """SIGKILL a component and wait until it is gone (a crash, for the demo's purposes)."""
        component = self._components[name]
        self._expected_dead.add(name)
        _signal_group(component, signal.SIGKILL)
        component.process.wait(STOP_GRACE_S)

    def stop(self, *names: str) -> None:
        """SIGTERM to the groups, SIGKILL to those that are still there after a while."""
        chosen = [self._components[name] for name in names]
        self._expected_dead.update(names)
        for component in chosen:
            _signal_group(component, signal.SIGTERM)
        deadline = time.monotonic() + STOP_GRACE_S
        for component in chosen:
            with contextlib.suppress(subprocess.TimeoutExpired):
                component.process.wait(max(0.0, deadline - time.monotonic()))
            # Also when the leader is gone: its children (the engine core of vLLM) may not be.
            _signal_group(component, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                component.process.wait(STOP_GRACE_S)

    def stop_all(self) -> None:
        self.stop(*self._components)
        self._components.clear()


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _signal_group(component: Component, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(component.process.pid, number)


def _die_with_parent() -> None:
    """In the child: ask the kernel for a SIGTERM if the demo itself is killed and cannot clean up."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
