"""Processes that a benchmark needs beside itself."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import time
from types import TracebackType
from typing import IO, Self

START_S = 60.0
"""Longest wait for a process to say that it is ready."""


def line_with(word: str, pipe: IO[str], seconds: float) -> str | None:
    """The first line with `word` in it; None where the writer ends, or the time is over, without one.

    Reads byte by byte past the pipe's buffer, so that whatever comes after the line stays for the next reader.
    """
    deadline = time.monotonic() + seconds
    line = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0:
            if not selector.select(left):
                continue
            byte = os.read(pipe.fileno(), 1)
            line += byte
            if byte in (b"\n", b""):
                if word in (text := line.decode(errors="replace")):
                    return text.strip()
                if not byte:
                    return None
                line.clear()
    return None


class Program:
    """One `python -m memcache.*` process that has said it is ready; stopped on exit."""

    def __init__(self, module: str, ready: str, *settings: str, quiet: bool = False) -> None:
        command = [sys.executable, "-m", module, *(part for setting in settings for part in ("--set", setting))]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL if quiet else None, text=True
        )
        assert self.process.stdout is not None
        line = line_with(ready, self.process.stdout, START_S)
        if line is None:
            self.kill()
            raise SystemExit(f"a service never said {ready!r}: {' '.join(command)}")
        self.line = line

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
