"""The scheduler's half of the connector: what to load, what to save, and until when blocks are held."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

import memcache
from memcache.store import fingerprint_digest
from memcache_connector.common.breaker import CircuitBreaker
from memcache_connector.vllm.config import ConnectorConfig
from memcache_connector.vllm.geometry import Geometry
from memcache_connector.vllm.log import logger
from memcache_connector.vllm.lookup import Lookup, PrefixLookup
from memcache_connector.vllm.metadata import GroupBlocks, LoadPlan, MemCacheMetadata, MemCacheWorkerMetadata
from memcache_connector.vllm.saves import NULL_BLOCK, SaveLedger
from memcache_connector.vllm.stats import Counters

if TYPE_CHECKING:
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.request import Request

REOFFER_SECONDS = 5.0
"""A prefix that the engine has itself is offered to the pool no more often than this."""

REOFFER_PREFIXES = 4096
"""Prefixes remembered for that."""

BlockTable = Sequence[Sequence[int]]
"""Block ids of a request, one sequence per KV-cache group."""


@dataclass
class RequestState:
    """What the connector remembers of a request from its arrival to its end."""

    request: Any
    lookup: Lookup | None = None
    local_tokens: int = 0
    """Tokens the engine had itself when it last asked for external ones."""

    loading: bool = False
    load_failed: bool = False
    cursors: list[int] = field(default_factory=list)
    """Per group: first block not yet offered for saving."""

    computed: int = 0
    """Tokens whose KV the steps scheduled so far produce or have."""

    next_full: int = 0
    """Below this many computed tokens there is no further block to save."""


class SchedulerSide:
    """Plans loads and saves. All calls come from the engine's scheduler thread; none waits for the pool longer than
    ``lookup_wait_ms`` a step.
    """

    def __init__(
        self,
        config: ConnectorConfig,
        geometry: Geometry,
        fields: dict[str, str],
        store: Any,
        ranks: int,
        saves: bool,
    ) -> None:
        self._config = config
        self._geometry = geometry
        self._fields = fields
        self._store = store
        self._saves = saves
        self._usable = True
        self._prefix = fingerprint_digest(fields["model"], fields)
        self._states: dict[str, RequestState] = {}
        self._loads: list[LoadPlan] = []
        self._offered: dict[bytes, float] = {}
        self.counters = Counters()
        self._breaker = CircuitBreaker(config.retry_ms, config.retry_max_ms)
        self._lookup = PrefixLookup(store, geometry, self._prefix, config, self._breaker, self.counters)
        self._ledger = SaveLedger(ranks, config.max_pinned_blocks or max(1, geometry.num_blocks // 4))
        self._tables: Callable[[str], BlockTable] | None = None
        self._closed = threading.Event()
        self.local_drain: Callable[[float], MemCacheWorkerMetadata | None] | None = None
        """Where the one worker lives in this process: waits for its saves, at most the given seconds."""

        threading.Thread(target=self._register, name="memcache-fingerprint", daemon=True).start()

    # ---- life -------------------------------------------------------------------------------------------------

    def bind(self, kv_cache_manager: Any) -> None:
        """vLLM's block tables and block pool exist now."""
        self._ledger.bind(kv_cache_manager.block_pool)
        self._tables = kv_cache_manager.get_block_ids

    def close(self) -> None:
        """Stop talking to the pool. May be called more than once."""
        self._closed.set()
        self._usable = False
        self._store.close()

    def _register(self) -> None:
        """Tell the pool this engine's fingerprint, and the operator how it differs from its neighbours'."""
        scope = self._fields["model"]
        while not self._closed.wait(self._breaker_pause()):
            try:
                _, differences = self._store.register_fingerprint(scope, self._fields)
            except (memcache.Unavailable, memcache.Timeout):
                continue
            except memcache.MemCacheError as error:
                if not self._closed.is_set():
                    logger.warning("the fingerprint of this engine could not be registered: %s", error)
                return
            if differences:
                logger.warning(
                    "this engine does not share KV with another that serves %s from the same pool; they differ in %s",
                    scope,
                    "; ".join(f"{entry.name}: {entry.ours!r} here, {entry.theirs!r} there" for entry in differences),
                )
            return

    def _breaker_pause(self) -> float:
        return self._config.retry_max_ms / 1000 if self._breaker.open else 0.05

    # ---- looking up -------------------------------------------------------------------------------------------

    def state_of(self, request: Request) -> RequestState:
        state = self._states.get(request.request_id)
        if state is None or state.request is not request:
            state = self._states[request.request_id] = RequestState(request)
        return state

    def matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int | None, bool]:
        """External tokens beyond ``num_computed_tokens``, and whether they are loaded asynchronously."""
        state = self.state_of(request)
        state.local_tokens = num_computed_tokens
        unit = self._geometry.unit_tokens
        local_units = num_computed_tokens // unit
        if not self._usable:
            return 0, False
        if not self._config.enable_lookup or state.load_failed or request.skip_reading_prefix_cache:
            self._set_cursors(state, local_units)
            return 0, False
        if state.lookup is None or state.lookup.stale(local_units):
            state.lookup = self._lookup.prepare(request.block_hashes, request.num_tokens)
        if state.lookup.units <= local_units:
            self._set_cursors(state, local_units if self._offered_lately(request, num_computed_tokens) else 0)
            return 0, False
        if not self._lookup.poll(state.lookup, local_units):
            return None, False
        units = state.lookup.found
        if units is None:
            self._set_cursors(state, local_units)
            return 0, False
        self._set_cursors(state, units)
        tokens = max(0, units - local_units) * unit
        return tokens, tokens > 0

    def _offered_lately(self, request: Request, tokens: int) -> bool:
        """Whether this prefix, all of which the engine has itself, was offered to the pool a moment ago.

        It may be gone from the pool, where other engines look for it; so it is offered again, but not with every
        request that begins with it.
        """
        if not tokens:
            return False
        now = time.monotonic()
        last = request.block_hashes[tokens // self._geometry.hash_tokens - 1]
        if now < self._offered.get(last, 0.0) + REOFFER_SECONDS:
            return True
        if len(self._offered) >= REOFFER_PREFIXES:
            self._offered.clear()
        self._offered[last] = now
        return False

    def _set_cursors(self, state: RequestState, units: int) -> None:
        state.cursors = [units * self._geometry.blocks_per_unit(group) for group in self._geometry.groups]
        self._set_next_full(state)

    def _set_next_full(self, state: RequestState) -> None:
        state.next_full = min(
            (cursor + 1) * group.block_tokens
            for cursor, group in zip(state.cursors, self._geometry.groups, strict=True)
        )

    # ---- loading ----------------------------------------------------------------------------------------------

    def allocated(self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int) -> None:
        """Blocks are allocated; the first ``num_external_tokens`` behind the local ones are to be loaded."""
        state = self.state_of(request)
        state.lookup = None
        if num_external_tokens <= 0:
            return
        unit = self._geometry.unit_tokens
        first = state.local_tokens // unit
        end = -(-(state.local_tokens + num_external_tokens) // unit)
        tables = blocks.get_block_ids()
        parts = []
        for group in self._geometry.groups:
            blocks_per_unit, every = self._geometry.blocks_per_unit(group), group.hashes_per_block
            table = tables[group.index]
            indices = [
                index
                for index in range(first * blocks_per_unit, min(end * blocks_per_unit, len(table)))
                if table[index] != NULL_BLOCK
            ]
            if indices:
                names = tuple(request.block_hashes[(index + 1) * every - 1] for index in indices)
                ids = np.array([table[index] for index in indices], dtype=np.int32)
                parts.append(GroupBlocks(group.index, names, ids))
        state.loading = True
        self.counters.add(hit_requests=1, hit_tokens=num_external_tokens)
        self._loads.append(LoadPlan(request.request_id, tuple(parts)))

    # ---- saving -----------------------------------------------------------------------------------------------

    def build(self, scheduler_output: SchedulerOutput) -> MemCacheMetadata:
        """The orders for the workers of this step."""
        self._lookup.new_step()
        if self._saves and self._usable and scheduler_output.num_scheduled_tokens:
            self._offer_scheduled(scheduler_output)
        loads, self._loads = self._loads, []
        return MemCacheMetadata(
            key_prefix=self._prefix,
            loads=loads,
            saves=self._ledger.take_jobs(),
            idle=scheduler_output.total_num_scheduled_tokens == 0,
        )

    def _offer_scheduled(self, scheduler_output: SchedulerOutput) -> None:
        block_state = getattr(scheduler_output, "kv_connector_block_state", None)
        tables = block_state.get_block_ids if block_state is not None else self._tables
        if tables is None:
            return
        # One question for the whole step, and only when there is something to save: a probe must not be wasted.
        allowed: bool | None = None
        for req_id, num_tokens in scheduler_output.num_scheduled_tokens.items():
            state = self._states.get(req_id)
            if state is None or not state.cursors:
                continue
            state.loading = False
            state.computed = state.request.num_computed_tokens + num_tokens
            if state.computed < state.next_full or not self._unsaved(state, state.computed):
                continue
            if allowed is None:
                allowed = self._breaker.allow()
            if not allowed:
                return
            table = tables(req_id)
            if table is not None:
                self._offer(state, table, state.computed)

    def _unsaved(self, state: RequestState, tokens: int) -> int:
        """Blocks of the first ``tokens`` tokens that were not offered yet."""
        return sum(
            max(0, end - cursor) for end, cursor in zip(self._block_ends(state, tokens), state.cursors, strict=True)
        )

    def _block_ends(self, state: RequestState, tokens: int) -> list[int]:
        """Per group: number of full blocks in the first ``tokens`` tokens that have a hash and may be saved."""
        request = state.request
        tokens = min(tokens, len(request.block_hashes) * self._geometry.hash_tokens)
        if not self._config.save_decode_blocks:
            tokens = min(tokens, request.num_prompt_tokens)
        return [tokens // group.block_tokens for group in self._geometry.groups]

    def _offer(self, state: RequestState, tables: BlockTable, tokens: int) -> None:
        for position, (group, end) in enumerate(
            zip(self._geometry.groups, self._block_ends(state, tokens), strict=True)
        ):
            table = tables[group.index]
            cursor = state.cursors[position]
            if end > cursor:
                state.cursors[position] = self._ledger.offer(
                    group, table, cursor, min(end, len(table)), state.request.block_hashes
                )
        self._set_next_full(state)

    def finished(self, request: Request, tables: BlockTable) -> None:
        """A request ends: offer what was not offered yet, as long as its blocks are there."""
        state = self._states.pop(request.request_id, None)
        if state is None or not (self._saves and self._usable and state.cursors) or state.loading:
            return
        # The KV of the last sampled token is never computed, that of rejected drafts is not this request's.
        tokens = min(state.computed, request.num_computed_tokens, request.num_tokens - 1)
        waiting = self._unsaved(state, tokens)
        if not waiting:
            return
        if not self._breaker.open:
            self._offer(state, tables, tokens)
            waiting = self._unsaved(state, tokens)
        self.counters.add(save_drops=waiting)

    @property
    def pending(self) -> bool:
        """Whether the engine has to keep stepping for the workers' reports to come in."""
        return self._ledger.pending

    # ---- reports ----------------------------------------------------------------------------------------------

    def reported(self, report: MemCacheWorkerMetadata) -> None:
        """The workers' reports of a step."""
        self._ledger.finished(report.finished_saves.items())
        for req_id in report.failed_loads:
            state = self._states.get(req_id)
            if state is not None:
                # Recomputed, not looked up again; and what is gone from the pool goes there once more.
                state.load_failed = True
                self._set_cursors(state, state.local_tokens // self._geometry.unit_tokens)
        if report.pool_failed and self._breaker.failure():
            logger.warning("the MemCache pool does not answer transfers; serving goes on without it")
        elif report.pool_answered and not report.pool_failed and self._breaker.success():
            logger.info("the MemCache pool answers again")
        if report.unusable and self._usable:
            self._usable = False
            logger.warning("MemCache is not used by this engine: %s", report.unusable)

    def drain(self, seconds: float) -> bool:
        """Wait for the saves under way where the worker is in this process. Whether none is left."""
        deadline = time.monotonic() + seconds
        while self._ledger.pending and self.local_drain is not None:
            left = deadline - time.monotonic()
            report = self.local_drain(left) if left > 0 else None
            if report is None:
                break
            self.reported(report)
        return not self._ledger.pending

    def reset(self) -> bool:
        """Remove every object of the pool, so that nothing computed before can be loaded. False when it could not."""
        if not self._config.reset_clears_pool:
            logger.warning("the pool was not cleared: reset_clears_pool is off")
            return False
        if not self._usable or not self.drain(self._config.save_timeout_ms / 1000):
            return False
        try:
            removed = self._store.remove_all()
        except memcache.MemCacheError as error:
            logger.warning("the pool could not be cleared: %s", error)
            return False
        logger.info("cleared the MemCache pool: %d objects removed", removed)
        return True
