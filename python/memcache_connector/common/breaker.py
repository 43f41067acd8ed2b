"""A circuit breaker: after a failure of the pool, leave it alone for a while."""

from __future__ import annotations

import time
from collections.abc import Callable


class CircuitBreaker:
    """Says whether the pool may be asked now.

    Closed at first. :meth:`failure` opens it: :meth:`allow` is False until a back-off has passed, then True for one
    attempt per back-off, until :meth:`success` closes it. The back-off doubles with each failure, from ``first_ms``
    to ``most_ms``; several failures of one moment count once.
    Not thread-safe: one owner.
    """

    def __init__(self, first_ms: int, most_ms: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._first = first_ms / 1000
        self._most = max(most_ms / 1000, self._first)
        self._clock = clock
        self._wait = 0.0
        self._retry_at = 0.0
        self._probing = False

    @property
    def open(self) -> bool:
        """Whether the last that was heard of the pool is a failure."""
        return self._wait > 0

    def allow(self) -> bool:
        """Whether to ask the pool. True while open means: this caller is the probe of this back-off."""
        if not self.open:
            return True
        now = self._clock()
        if now < self._retry_at:
            return False
        self._retry_at = now + self._wait
        self._probing = True
        return True

    def success(self) -> bool:
        """The pool answered. True when this answer closed the breaker."""
        closed = self.open
        self._wait = 0.0
        self._probing = False
        return closed

    def failure(self) -> bool:
        """The pool did not answer. True when this failure opened the breaker."""
        now = self._clock()
        opened = not self.open
        if opened:
            self._wait = self._first
        elif self._probing:
            self._wait = min(self._wait * 2, self._most)
        self._probing = False
        self._retry_at = now + self._wait
        return opened
