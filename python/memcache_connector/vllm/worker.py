"""A worker's half of the connector: hands block transfers to the store and reports how they ended."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

import memcache
from memcache_connector.common.keys import Slot, hash_matrix, slot_keys
from memcache_connector.vllm.config import ConnectorConfig
from memcache_connector.vllm.geometry import Geometry, Group, RankPlace
from memcache_connector.vllm.log import logger
from memcache_connector.vllm.metadata import GroupBlocks, MemCacheMetadata, MemCacheWorkerMetadata, SaveJob
from memcache_connector.vllm.stats import Counters

if TYPE_CHECKING:
    import torch

IDLE_WAIT_MS = 2
"""How long a step that computes nothing waits for a transfer, so that an idle engine does not spin."""


@dataclass
class Part:
    """The transfer of one group's blocks."""

    blocks: GroupBlocks
    block_bytes: int
    completion: Any
    """None: it could not even be submitted."""

    failed_status: int

    def done(self) -> bool:
        return self.completion is None or bool(self.completion.done())

    def statuses(self) -> npt.NDArray[np.int32]:
        """A status for each block; only after :meth:`done`."""
        if self.completion is not None:
            try:
                return np.asarray(self.completion.result(timeout_ms=0), dtype=np.int32)
            except memcache.MemCacheError as error:
                logger.warning("a transfer of %d blocks failed: %s", len(self.blocks.block_ids), error)
        return np.full(len(self.blocks.block_ids), self.failed_status, dtype=np.int32)


@dataclass
class TransferResults:
    """How the loads ended that ended since the last call."""

    finished: set[str]
    failed: set[str]
    """Those of ``finished`` that must be recomputed as a whole."""


class WorkerSide:
    """Transfers of one rank. All calls come from the worker's thread; none waits for the pool.

    Without a ``store`` the worker still answers every order, with failure.
    """

    def __init__(
        self, config: ConnectorConfig, geometry: Geometry, place: RankPlace, byte_order: str, store: Any
    ) -> None:
        self._config = config
        self._byte_order = byte_order
        self._geometry = geometry
        self._place = place
        self._store = store
        self._layouts: dict[int, Any] = {}
        self._unusable = ""
        self._loads: dict[str, list[Part]] = {}
        self._saves: dict[int, list[Part]] = {}
        self._bad_blocks: set[int] = set()
        self._told_full = False
        self._report = MemCacheWorkerMetadata()
        self.counters = Counters()
        if store is None:
            self._give_up("the store of this rank could not be opened")

    # ---- registration -----------------------------------------------------------------------------------------

    def register(self, kv_caches: dict[str, Any]) -> None:
        """The KV cache is allocated: one tensor (or list of tensors that share storage) per layer."""
        if self._store is None:
            return
        try:
            for group in self._geometry.groups:
                tensors = _distinct(kv_caches, group.layers)
                self._check_byte_order(group, tensors)
                layout = self._store.register_layout(tensors, num_blocks=self._geometry.num_blocks)
                self._layouts[group.index] = layout
                logger.debug(
                    "KV-cache group %d: %d tensors, %d bytes and %d pieces a block",
                    group.index,
                    len(tensors),
                    layout.block_bytes,
                    layout.pieces_per_block,
                )
        except (memcache.MemCacheError, UnusableCache) as error:
            self._layouts.clear()
            self._give_up(str(error))

    def _check_byte_order(self, group: Group, tensors: Sequence[torch.Tensor]) -> None:
        """Refuse a cache that is not laid out as object keys say: other engines would read other bytes."""
        for tensor in tensors:
            heads, tokens = tensor.shape[-3], tensor.shape[-2]
            found = "HN" if tensor.stride(-3) >= tensor.stride(-2) else "NH"
            if heads > 1 and tokens > 1 and found != self._byte_order:
                raise UnusableCache(
                    f"group {group.index} keeps {found} order in memory where {self._byte_order} was announced"
                )

    def _give_up(self, why: str) -> None:
        logger.error("this rank cannot keep KV in the MemCache pool: %s", why)
        self._unusable = self._report.unusable = why

    # ---- orders -----------------------------------------------------------------------------------------------

    def start_loads(self, orders: MemCacheMetadata) -> None:
        """Start filling the blocks of the requests in ``orders``."""
        timeout_ms, silent = self._config.load_timeout_ms, int(memcache.GetStatus.UNAVAILABLE)
        for plan in orders.loads:
            self._loads[plan.req_id] = [
                self._submit("get_blocks_async", orders.key_prefix, blocks, timeout_ms, silent) for blocks in plan.parts
            ]

    def start_saves(self, orders: MemCacheMetadata) -> None:
        """Start reading the blocks of ``orders``: the step that computes them has ended."""
        for job in orders.saves:
            if self._place.writes and not self._unusable:
                self._start_save(orders.key_prefix, job)
            else:
                self._report.finished_saves[job.job_id] += 1

    def _start_save(self, key_prefix: bytes, job: SaveJob) -> None:
        timeout_ms, silent = self._config.save_timeout_ms, int(memcache.PutStatus.UNAVAILABLE)
        self._saves[job.job_id] = [
            self._submit("put_blocks_async", key_prefix, blocks, timeout_ms, silent) for blocks in job.parts
        ]

    def _submit(self, call: str, prefix: bytes, blocks: GroupBlocks, timeout_ms: int, failed_status: int) -> Part:
        layout = self._layouts.get(blocks.group)
        if layout is None:
            return Part(blocks, 0, None, failed_status)
        slot = Slot(blocks.group, self._place.pipeline, self._place.shard)
        completion = None
        try:
            keys = slot_keys(prefix, slot, hash_matrix(blocks.hashes))
            completion = getattr(self._store, call)(layout, keys, blocks.block_ids, timeout_ms=timeout_ms)
        except memcache.MemCacheError as error:
            logger.warning("a transfer of %d blocks was not accepted: %s", len(blocks.block_ids), error)
        return Part(blocks, int(layout.block_bytes), completion, failed_status)

    # ---- reports ----------------------------------------------------------------------------------------------

    def poll(self, idle: bool) -> TransferResults:
        """Loads that have ended. In an ``idle`` step, waits a moment when there are transfers and none is done."""
        if idle:
            self._linger()
        self._collect_saves()
        results = TransferResults(set(), set())
        for req_id in [req_id for req_id, parts in self._loads.items() if all(part.done() for part in parts)]:
            results.finished.add(req_id)
            bad = self._collect_load(self._loads.pop(req_id))
            if bad.size:
                self._report.failed_loads.add(req_id)
                if self._geometry.block_level_errors:
                    self._bad_blocks.update(int(block) for block in bad)
                else:
                    results.failed.add(req_id)
        return results

    def abandon_loads(self, req_ids: Iterable[str]) -> None:
        """Stop loads of requests that have ended meanwhile: nobody will read those blocks. Does not wait; :meth:`poll`
        reports them as soon as nothing can be written to them any more."""
        for req_id in req_ids:
            for part in self._loads.get(req_id, ()):
                if part.completion is not None and not part.done():
                    try:
                        part.completion.cancel(timeout_ms=0)
                    except memcache.MemCacheError as error:
                        logger.debug("a load of request %s cannot be cancelled: %s", req_id, error)

    def _linger(self) -> None:
        under_way = [part for parts in (*self._loads.values(), *self._saves.values()) for part in parts]
        if under_way and not any(part.done() for part in under_way):
            under_way[0].completion.wait(timeout_ms=IDLE_WAIT_MS)

    def _collect_load(self, parts: Sequence[Part]) -> npt.NDArray[np.int32]:
        """Count how the parts of a load ended; returns the blocks that do not hold what they should."""
        bad = []
        for part in parts:
            statuses = part.statuses()
            loaded = int(np.count_nonzero(statuses == memcache.GetStatus.HIT))
            missed = int(np.count_nonzero(statuses == memcache.GetStatus.MISS))
            cancelled = int(np.count_nonzero(statuses == memcache.GetStatus.CANCELLED))
            self.counters.add(
                loaded_blocks=loaded,
                loaded_bytes=loaded * part.block_bytes,
                load_misses=missed,
                load_failures=len(statuses) - loaded - missed - cancelled,
            )
            self._heard(statuses, part)
            bad.append(part.blocks.block_ids[statuses != memcache.GetStatus.HIT])
        return np.concatenate(bad) if bad else np.empty(0, dtype=np.int32)

    def _collect_saves(self) -> None:
        status = memcache.PutStatus
        for job in [job for job, parts in self._saves.items() if all(part.done() for part in parts)]:
            for part in self._saves.pop(job):
                statuses = part.statuses()
                count = Counter(statuses.tolist())
                stored, full = count[status.STORED], count[status.NO_SPACE]
                present = count[status.PRESENT] + count[status.PENDING]
                self.counters.add(
                    saved_blocks=stored,
                    saved_bytes=stored * part.block_bytes,
                    present_blocks=present,
                    save_no_space=full,
                    save_failures=len(statuses) - stored - present - full,
                )
                self._heard(statuses, part)
                if full and not self._told_full:
                    self._told_full = True
                    logger.warning("the MemCache pool has no room for %d blocks; does any node lend memory?", full)
            self._report.finished_saves[job] += 1

    def _heard(self, statuses: npt.NDArray[np.int32], part: Part) -> None:
        """Note whether the pool answered: the scheduler's circuit breaker lives of it."""
        if not len(statuses) or (part.completion is None and self._unusable):
            return
        if (statuses == memcache.GetStatus.CANCELLED).all():
            return
        silent = (int(memcache.GetStatus.UNAVAILABLE), int(memcache.GetStatus.TIMEOUT))
        if np.isin(statuses, silent).any():
            self._report.pool_failed = True
        else:
            self._report.pool_answered = True

    def take_bad_blocks(self) -> set[int]:
        """Blocks that were not loaded, of requests reported since the last call."""
        bad, self._bad_blocks = self._bad_blocks, set()
        return bad

    def take_report(self) -> MemCacheWorkerMetadata | None:
        """What the scheduler has to know since the last call, or None when that is nothing."""
        report = self._report
        if not (
            report.finished_saves
            or report.failed_loads
            or report.pool_failed
            or report.pool_answered
            or report.unusable
        ):
            return None
        self._report = MemCacheWorkerMetadata()
        return report

    def drain(self, seconds: float) -> MemCacheWorkerMetadata | None:
        """Wait at most ``seconds`` for one of the saves under way; its report, or None when nothing happened."""
        deadline = time.monotonic() + seconds
        for parts in self._saves.values():
            for part in parts:
                if part.completion is not None:
                    part.completion.wait(timeout_ms=max(0, int((deadline - time.monotonic()) * 1000)))
        self._collect_saves()
        return self.take_report()

    def close(self) -> None:
        """End the connection to the pool: loads are stopped, saves are waited for. May be called more than once."""
        self.abandon_loads(list(self._loads))
        if self._store is not None:
            self._store.close()
        self._layouts.clear()


class UnusableCache(Exception):
    """The allocated KV cache is not what the connector can move."""


def _distinct(kv_caches: dict[str, Any], layers: Sequence[str]) -> list[torch.Tensor]:
    """The tensors of ``layers`` in that order; layers that share one tensor count once."""
    seen: set[tuple[int, tuple[int, ...]]] = set()
    tensors = []
    for layer in layers:
        tensor = kv_caches.get(layer)
        if isinstance(tensor, (list, tuple)):
            tensor = tensor[0] if len(tensor) == 1 else None
        if tensor is None or tensor.dim() < 4:
            raise UnusableCache(f"layer {layer} has no KV-cache tensor of blocks, heads, tokens and content")
        place = (tensor.data_ptr(), tuple(tensor.shape))
        if place not in seen:
            seen.add(place)
            tensors.append(tensor)
    return tensors
