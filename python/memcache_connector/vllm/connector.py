"""The class vLLM loads: one instance in the scheduler, one in every worker."""

# ruff: noqa: E402
from __future__ import annotations

import socket
import weakref
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import vllm

from memcache_connector.vllm.version import check

check(vllm.__version__)  # Before the rest: a clear error, not an ImportError of some name that older versions lack.

try:
    import memcache
except ImportError as error:
    raise ImportError(
        f"the memcache package (distribution memcache-connector) is not installed completely: {error}"
    ) from error

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorTransferResults,
    KVConnectorWorkerMetadata,
    SupportsHMA,
)

from memcache_connector.vllm.config import ConnectorConfig, rank_file, store_overrides
from memcache_connector.vllm.geometry import Geometry, UnsupportedModel, read_geometry, read_place
from memcache_connector.vllm.identity import byte_order, identity_fields, layout_name
from memcache_connector.vllm.log import logger
from memcache_connector.vllm.metadata import MemCacheMetadata, MemCacheWorkerMetadata
from memcache_connector.vllm.scheduler import SchedulerSide
from memcache_connector.vllm.stats import MemCachePromMetrics, MemCacheStats
from memcache_connector.vllm.worker import WorkerSide

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics, KVConnectorStats
    from vllm.forward_context import ForwardContext
    from vllm.v1.attention.backend import AttentionMetadata
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks, KVCacheManager
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

BLOCK_OUTERMOST = "BLHNC"
"""Layout in which all layers of a block are one run of memory."""

_local_workers: defaultdict[str, weakref.WeakSet[WorkerSide]] = defaultdict(weakref.WeakSet)
"""Engine id to the workers of that engine in this process (several as children of a MultiConnector)."""


class MemCacheConnector(KVConnectorBase_V1, SupportsHMA):
    """Keeps KV blocks in a MemCache pool and loads them from there.

    Whatever the pool does, the engine serves: a pool that is away, slow or full, or a model whose KV this connector
    cannot keep, costs log lines and hits, not requests. Only an invalid configuration stops the start
    (:class:`~memcache_connector.vllm.config.ConnectorConfigError`, ``memcache.ConfigError``).
    """

    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._scheduler: SchedulerSide | None = None
        self._worker: WorkerSide | None = None
        transfer = self._kv_transfer_config
        self._engine_id = str(transfer.engine_id)
        config = ConnectorConfig.parse(transfer.kv_connector_extra_config)
        is_worker = role is KVConnectorRole.WORKER
        if not is_worker and transfer.kv_load_failure_policy != "recompute":
            logger.warning(
                "kv_load_failure_policy is %r: a request whose blocks cannot be loaded from the pool will fail. "
                "Set it to 'recompute'",
                transfer.kv_load_failure_policy,
            )
        try:
            geometry = read_geometry(vllm_config, kv_cache_config)
        except UnsupportedModel as error:
            # All processes of the engine see this; the scheduler plans nothing, so workers have nothing to do.
            if not is_worker:
                logger.warning("MemCache is not used by this engine, not supported: %s", error)
            return
        store = self._open_store(config, is_worker)
        if is_worker:
            self._worker = self._worker_side(config, geometry, store)
        elif store is not None:
            self._scheduler = self._scheduler_side(config, geometry, store)

    def _worker_side(self, config: ConnectorConfig, geometry: Geometry, store: Any) -> WorkerSide:
        place = read_place(self._vllm_config, self._kv_cache_config)
        order = byte_order(layout_name(self._vllm_config, self._kv_cache_config), self._kv_cache_config)
        worker = WorkerSide(config, geometry, place, order, store)
        if self._vllm_config.parallel_config.world_size == 1:
            _local_workers[self._engine_id].add(worker)
        return worker

    def _scheduler_side(self, config: ConnectorConfig, geometry: Geometry, store: Any) -> SchedulerSide:
        transfer = self._kv_transfer_config
        fields = identity_fields(self._vllm_config, self._kv_cache_config, geometry, config.model_id)
        return SchedulerSide(
            config,
            geometry,
            fields,
            store,
            ranks=self._vllm_config.parallel_config.world_size,
            saves=transfer.kv_role != "kv_consumer" or config.consumer_saves,
        )

    def _open_store(self, config: ConnectorConfig, is_worker: bool) -> Any:
        """The store of this process, or None when there can be no pool. Raises for an invalid configuration."""
        parallel = self._vllm_config.parallel_config
        hosts = getattr(parallel, "nnodes_within_dp", 1)
        local_ranks = max(1, parallel.world_size // hosts)
        overrides = store_overrides(config, self._engine_id, is_worker, local_ranks)
        role = f"worker{parallel.rank}" if is_worker else "scheduler"
        overrides.setdefault("node_name", f"{socket.gethostname()}:vllm:{role}")
        loaded = memcache.StoreConfig.load(**overrides)
        file = rank_file(loaded.persist, self._engine_id, parallel.world_size, parallel.rank)
        loaded = replace(loaded, persist=file)
        if not loaded.meta_address and hosts > 1:
            logger.error("MemCache is not used: an engine of several hosts needs a pool address (meta_address)")
            return None
        try:
            store = memcache.Store(loaded)
        except memcache.InvalidArgument:
            raise
        except (memcache.MemCacheError, OSError) as error:
            logger.error("MemCache is not used by this %s: %s", role, error)
            return None
        if not is_worker:
            self._announce(store)
        elif str(loaded.lend_bytes) != "0":
            logger.info("MemCache: this rank lends %s of host memory to the pool", loaded.lend_bytes)
        return store

    def _announce(self, store: Any) -> None:
        if store.embedded:
            logger.info(
                "MemCache: no pool address is configured, so this engine keeps a pool of its own (MetaService at %s). "
                "To share one between engines, run 'python -m memcache.meta --set listen=0.0.0.0:7411' and start each "
                "engine with MEMCACHE_META_ADDRESS=<its host>:7411, or meta_address in kv_connector_extra_config",
                store.meta_address,
            )
        else:
            logger.info("MemCache: pool at %s", store.meta_address)

    # ---- what vLLM asks of the class --------------------------------------------------------------------------

    @classmethod
    def get_required_kvcache_layout(cls, vllm_config: VllmConfig) -> str | None:
        """A preference for one run of memory per block, where the platform has a choice of layouts."""
        from vllm.platforms import current_platform

        return BLOCK_OUTERMOST if current_platform.is_cuda_alike() else None

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> KVConnectorStats | None:
        """Stats as they came from the engine's processes, back in their class."""
        return MemCacheStats(data=data or {})

    @classmethod
    def build_prom_metrics(
        cls,
        vllm_config: VllmConfig,
        metric_types: dict[Any, Any],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> KVConnectorPromMetrics | None:
        """The Prometheus counters ``vllm:memcache_*``."""
        return MemCachePromMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)

    @property
    def requires_kv_delivery(self) -> bool:
        """False: a block that is not saved is a later miss, nothing more."""
        return False

    def get_kv_connector_stats(self) -> KVConnectorStats | None:
        """What this process counted since the last call."""
        side = self._worker or self._scheduler
        return side.counters.take() if side is not None else None

    def shutdown(self) -> None:
        """Close the store of this process. May be called more than once."""
        for side in (self._worker, self._scheduler):
            if side is not None:
                side.close()
        if self._worker is not None:
            _local_workers[self._engine_id].discard(self._worker)

    # ---- scheduler --------------------------------------------------------------------------------------------

    def bind_kv_cache_manager(self, kv_cache_manager: KVCacheManager) -> None:
        """Called once, before the first request."""
        super().bind_kv_cache_manager(kv_cache_manager)
        if self._scheduler is None:
            return
        self._scheduler.bind(kv_cache_manager)
        workers = list(_local_workers[self._engine_id])
        if len(workers) == 1:
            self._scheduler.local_drain = workers[0].drain
            self._drain_before_reset(kv_cache_manager)

    def _drain_before_reset(self, kv_cache_manager: KVCacheManager) -> None:
        """Let ``LLM.reset_prefix_cache()`` succeed right after ``generate()``.

        vLLM refuses to reset while blocks are referenced. A server keeps stepping until our references are gone; an
        offline engine in one process is not stepped again, so the last saves are waited for here.
        """
        reset, side = kv_cache_manager.reset_prefix_cache, self._scheduler
        assert side is not None

        def reset_prefix_cache() -> bool:
            side.drain(1.0)
            return bool(reset())

        kv_cache_manager.reset_prefix_cache = reset_prefix_cache

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[int | None, bool]:
        """Tokens the pool holds beyond ``num_computed_tokens``; (None, False) while that is being asked."""
        if self._scheduler is None:
            return 0, False
        return self._scheduler.matched_tokens(request, num_computed_tokens)

    def update_state_after_alloc(self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int) -> None:
        """Plan the load of ``num_external_tokens`` tokens into ``blocks``."""
        if self._scheduler is not None:
            self._scheduler.allocated(request, blocks, num_external_tokens)

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> KVConnectorMetadata:
        """This step's loads and saves."""
        if self._scheduler is None:
            return MemCacheMetadata()
        return self._scheduler.build(scheduler_output)

    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        """The workers' reports of a step."""
        report = connector_output.kv_connector_worker_meta
        if self._scheduler is not None and isinstance(report, MemCacheWorkerMetadata):
            self._scheduler.reported(report)

    def request_finished_all_groups(
        self, request: Request, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        """Never delays freeing: blocks being saved have references of their own."""
        if self._scheduler is not None:
            self._scheduler.finished(request, block_ids)
        return False, None

    def request_finished(self, request: Request, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """The single-group form of :meth:`request_finished_all_groups`."""
        return self.request_finished_all_groups(request, (block_ids,))

    def has_pending_push_work(self) -> bool:
        """Whether saves are under way, so that the engine has to keep stepping."""
        return self._scheduler is not None and self._scheduler.pending

    def reset_cache(self) -> bool | None:
        """Clear the pool."""
        return self._scheduler.reset() if self._scheduler is not None else None

    # ---- worker -----------------------------------------------------------------------------------------------

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Layer name to KV-cache tensor of this rank."""
        if self._worker is not None:
            self._worker.register(kv_caches)

    def _orders(self) -> MemCacheMetadata:
        orders = self._get_connector_metadata()
        assert isinstance(orders, MemCacheMetadata)
        return orders

    def start_load_kv(self, forward_context: ForwardContext, **kwargs: Any) -> None:
        """Submit this step's loads."""
        if self._worker is not None:
            self._worker.start_loads(self._orders())

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing: loads end between steps, before their request runs."""

    def save_kv_layer(
        self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: AttentionMetadata, **kwargs: Any
    ) -> None:
        """Nothing: whole blocks are saved at the end of the step."""

    def wait_for_save(self) -> None:
        """Submit this step's saves. Does not wait for them."""
        if self._worker is not None:
            self._worker.start_saves(self._orders())

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        """Requests whose loads have ended, also those aborted meanwhile."""
        if self._worker is None:
            return KVConnectorTransferResults()
        idle = self.has_connector_metadata() and self._orders().idle
        self._worker.abandon_loads(finished_req_ids)
        results = self._worker.poll(idle)
        return KVConnectorTransferResults(finished_recving=results.finished, failed_recving=results.failed)

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Blocks that failed to load, where vLLM can take single blocks (one KV-cache group)."""
        return self._worker.take_bad_blocks() if self._worker is not None else set()

    def build_connector_worker_meta(self) -> KVConnectorWorkerMetadata | None:
        """This step's report to the scheduler."""
        return self._worker.take_report() if self._worker is not None else None
