"""Services of a measurement: started together, stopped together, their processor time counted."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from programs import START_S, line_with

STOP_S = 5.0
_TICK = os.sysconf("SC_CLK_TCK")


class PeerError(Exception):
    """A system that cannot be measured here, and why."""


def free_port() -> int:
    """A TCP port nobody listens on at the moment."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Services:
    """The processes beside the one that measures."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[str]] = []
        self._folder = tempfile.TemporaryDirectory(prefix="memcache-bench-")

    @property
    def folder(self) -> Path:
        """A folder that goes away with the services."""
        return Path(self._folder.name)

    def start(self, command: Sequence[str], ready: str | None = None, env: dict[str, str] | None = None) -> str:
        """Starts a program; with `ready`, waits for an output line that has it and returns that line."""
        log: IO[str] = (self.folder / f"{len(self._processes)}.log").open("w")
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if ready else log,
            stderr=log,
            text=True,
            env={**os.environ, **(env or {})},
        )
        self._processes.append(process)
        if ready is None:
            return ""
        assert process.stdout is not None
        line = line_with(ready, process.stdout, START_S)
        if line is None:
            raise PeerError(f"{command[0]} never said {ready!r}: {Path(log.name).read_text()[-500:]}")
        return line

    def start_python(self, module: str, *arguments: str, ready: str, env: dict[str, str] | None = None) -> str:
        """Starts a module of this environment."""
        return self.start([sys.executable, "-m", module, *arguments], ready, env)

    def cpu_s(self) -> float:
        """Processor seconds, user and system, of the services and of this process so far."""
        own = os.times()
        return own.user + own.system + sum(_cpu_of(process.pid) for process in self._processes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in reversed(self._processes):
            process.send_signal(signal.SIGTERM)
        for process in self._processes:
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._folder.cleanup()


def _cpu_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK
