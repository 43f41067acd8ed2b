"""Finding out how much of a prompt the pool holds: one RPC a request, never waited for longer than a moment."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

import memcache
from memcache_connector.common.breaker import CircuitBreaker
from memcache_connector.common.keys import BATCH_KEYS_MAX, KeyMatrix, Slot, chain_keys, hash_matrix
from memcache_connector.vllm.config import ConnectorConfig
from memcache_connector.vllm.geometry import Geometry
from memcache_connector.vllm.log import logger
from memcache_connector.vllm.stats import Counters

PENDING_RETRY_SECONDS = 0.005
"""Pause between two look-ups of a prefix that somebody is writing."""

ANSWER_SECONDS = 1.0
"""How long an answer serves a request that vLLM asks about again because it had no blocks to give."""


@dataclass
class Lookup:
    """The look-ups of one request, one after the other, and what came of them."""

    units: int
    """Units of the prompt that can be loaded at all."""

    keys: KeyMatrix
    completion: Any = None
    """The one under way, or None between two."""

    deadline: float = 0.0
    retry_at: float = 0.0
    pending_until: float | None = None
    answered_at: float | None = None
    """When the outcome was known; None before."""

    local_units: int = 0
    """Units the engine had itself then."""

    found: int | None = None
    """The outcome: leading units that can be had from the pool (those the engine has count), or None when the pool
    gave no answer and the request is to be served as without one."""

    def stale(self, local_units: int) -> bool:
        """Whether there is an outcome that no longer helps."""
        if self.answered_at is None:
            return False
        return local_units != self.local_units or time.monotonic() > self.answered_at + ANSWER_SECONDS


class PrefixLookup:
    """Looks prefixes up for the scheduler.

    A *unit* is the least common multiple of the groups' blocks; for each unit the pool must hold one object for every
    block of every group, of every pipeline rank and shard. With full attention alone this is one ``match_prefix``
    over the keys in unit order; where some group attends to a window, one ``exist`` over the same keys tells which
    prefix has all that is still read.
    """

    def __init__(
        self,
        store: Any,
        geometry: Geometry,
        key_prefix: bytes,
        config: ConnectorConfig,
        breaker: CircuitBreaker,
        counters: Counters,
    ) -> None:
        self._store = store
        self._geometry = geometry
        self._prefix = key_prefix
        self._columns = sum(geometry.blocks_per_unit(group) * len(geometry.slots(group)) for group in geometry.groups)
        self._config = config
        self._breaker = breaker
        self._counters = counters
        self._patience = config.lookup_wait_ms / 1000

    def new_step(self) -> None:
        """A new scheduler step begins: it may wait again."""
        self._patience = self._config.lookup_wait_ms / 1000

    def prepare(self, hashes: Sequence[bytes], tokens: int) -> Lookup:
        """The look-up of a request of ``tokens`` tokens, at least one of which has to be computed."""
        geometry = self._geometry
        tokens = min(max(tokens - 1, 0), len(hashes) * geometry.hash_tokens)
        units = min(tokens // geometry.unit_tokens, BATCH_KEYS_MAX // self._columns)
        return Lookup(units, self._keys(hashes, units) if units else np.empty((0, 0), dtype=np.uint8))

    def _keys(self, hashes: Sequence[bytes], units: int) -> KeyMatrix:
        columns: list[tuple[Slot, KeyMatrix]] = []
        for group in self._geometry.groups:
            blocks = self._geometry.blocks_per_unit(group)
            every = group.hashes_per_block
            names = hash_matrix(hashes[every - 1 : units * blocks * every : every])
            for position in range(blocks):
                columns += [(slot, names[position::blocks]) for slot in self._geometry.slots(group)]
        return chain_keys(self._prefix, columns)

    def poll(self, lookup: Lookup, local_units: int) -> bool:
        """Whether ``lookup.found`` is known. ``local_units``: what the engine has itself."""
        if lookup.answered_at is not None:
            return True
        now = time.monotonic()
        if lookup.completion is None:
            if now < lookup.retry_at:
                return False
            if not self._start(lookup, now):
                return self._conclude(lookup, local_units, None)
        if self._wait(lookup):
            return self._finish(lookup, local_units, now)
        if now < lookup.deadline:
            return False
        self._failed("no answer within lookup_timeout_ms")
        return self._conclude(lookup, local_units, None)

    @staticmethod
    def _conclude(lookup: Lookup, local_units: int, found: int | None) -> bool:
        lookup.answered_at = time.monotonic()
        lookup.local_units, lookup.found = local_units, found
        return True

    def _start(self, lookup: Lookup, now: float) -> bool:
        if not self._breaker.allow():
            self._counters.add(lookups_skipped=1)
            return False
        submit = self._store.exist_async if self._geometry.windowed else self._store.match_prefix_async
        try:
            lookup.completion = submit(lookup.keys, timeout_ms=self._config.lookup_timeout_ms)
        except memcache.MemCacheError as error:
            self._failed(str(error))
            return False
        lookup.deadline = now + self._config.lookup_timeout_ms / 1000
        self._counters.add(lookups=1)
        return True

    def _wait(self, lookup: Lookup) -> bool:
        """Whether the answer is there, after waiting for it as long as this step still may."""
        if lookup.completion.done():
            return True
        if self._patience <= 0:
            return False
        began = time.monotonic()
        done = bool(lookup.completion.wait(timeout_ms=max(1, int(self._patience * 1000))))
        self._patience -= time.monotonic() - began
        return done

    def _finish(self, lookup: Lookup, local_units: int, now: float) -> bool:
        try:
            answer = lookup.completion.result(timeout_ms=0)
        except memcache.MemCacheError as error:
            self._failed(str(error))
            return self._conclude(lookup, local_units, None)
        lookup.completion = None
        if self._breaker.success():
            logger.info("the MemCache pool answers again")
        present, promised = self._units(lookup, answer, local_units)
        if promised > max(present, local_units) and self._config.pending_wait_ms > 0:
            if lookup.pending_until is None:
                lookup.pending_until = now + self._config.pending_wait_ms / 1000
                self._counters.add(pending_waits=1)
            if now < lookup.pending_until:
                lookup.retry_at = now + PENDING_RETRY_SECONDS
                return False
        return self._conclude(lookup, local_units, present)

    def _failed(self, why: str) -> None:
        self._counters.add(lookup_failures=1)
        if self._breaker.failure():
            logger.warning("the MemCache pool does not answer (%s); serving goes on without it", why)

    def _units(self, lookup: Lookup, answer: Any, local_units: int) -> tuple[int, int]:
        """Leading units present, and leading units present or being written."""
        columns = self._columns
        if not self._geometry.windowed:
            present, promised = (int(count) // columns for count in answer)
            if self._geometry.drop_last_unit:
                present, promised = max(0, present - 1), max(0, promised - 1)
            return present, promised
        table = np.asarray(answer).reshape(lookup.units, columns)
        readable, known = table == memcache.Presence.READABLE, table != memcache.Presence.ABSENT
        return self._reachable(readable, local_units), self._reachable(known, local_units)

    def _reachable(self, have: npt.NDArray[np.bool_], local_units: int) -> int:
        """The longest prefix, in units, of which ``have`` (shape ``(units, columns)``) holds all that is read."""
        geometry = self._geometry
        rows = units = int(have.shape[0])
        missing: list[npt.NDArray[np.int64]] = []
        column = 0
        for group in geometry.groups:
            blocks, slots = geometry.blocks_per_unit(group), len(geometry.slots(group))
            part = have[:, column : column + blocks * slots].reshape(rows * blocks, slots)
            absent: npt.NDArray[np.bool_] = np.logical_not(part.all(axis=1))
            absent[: local_units * blocks] = False
            column += blocks * slots
            counts = np.concatenate(([0], np.cumsum(absent)))
            if group.window is None and counts[-1]:
                units = min(units, int(np.argmax(absent)) // blocks)
            missing.append(counts)
        while units > local_units:
            tokens = units * geometry.unit_tokens
            if all(
                counts[units * geometry.blocks_per_unit(group)] == counts[group.first_needed_block(tokens)]
                for group, counts in zip(geometry.groups, missing, strict=True)
            ):
                return units
            units -= 1
        return 0
