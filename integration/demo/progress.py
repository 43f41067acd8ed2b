"""What the demo says while it works: one line that is rewritten on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import sys
import time

QUIET_S = 10.0  # between two lines where nothing can be rewritten


class Progress:
    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._started = time.monotonic()
        self._said_at = 0.0
        self._width = 0

    def say(self, text: str) -> None:
        """A line that stays."""
        self._erase()
        print(f"[{time.monotonic() - self._started:5.0f} s] {text}", flush=True)
        self._said_at = time.monotonic()

    def show(self, text: str) -> None:
        """The state of something that is going on."""
        line = f"[{time.monotonic() - self._started:5.0f} s] {text}"
        if self._terminal:
            print("\r" + line.ljust(self._width), end="", flush=True)
            self._width = len(line)
        elif time.monotonic() - self._said_at >= QUIET_S:
            print(line, flush=True)
            self._said_at = time.monotonic()

    def _erase(self) -> None:
        if self._terminal and self._width:
            print("\r" + " " * self._width + "\r", end="")
            self._width = 0


def bar(done: int, total: int, width: int = 30) -> str:
    filled = width * done // max(1, total)
    return f"{'#' * filled}{'.' * (width - filled)} {done}/{total}"
