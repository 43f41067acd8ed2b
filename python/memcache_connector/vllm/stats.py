"""Counters of the connector: vLLM's log line and Prometheus metrics."""

from __future__ import annotations

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics, KVConnectorStats

COUNTERS = {
    "lookups": "Prefix look-ups sent to the pool.",
    "lookup_failures": "Look-ups that got no answer.",
    "lookups_skipped": "Look-ups not sent because the pool had failed a moment ago.",
    "pending_waits": "Requests that waited for blocks another engine was writing.",
    "hit_requests": "Requests of which the pool held a part.",
    "hit_tokens": "Tokens found in the pool beyond the engine's own prefix cache.",
    "loaded_blocks": "Blocks loaded from the pool, of all ranks.",
    "loaded_bytes": "Bytes loaded from the pool, of all ranks.",
    "load_misses": "Blocks found by the look-up and gone when they were to be loaded.",
    "load_failures": "Blocks that could not be loaded for another reason.",
    "saved_blocks": "Blocks written to the pool, of all ranks.",
    "saved_bytes": "Bytes written to the pool, of all ranks.",
    "present_blocks": "Blocks that the pool had already, or that another engine was writing.",
    "save_no_space": "Blocks not saved because the pool is full.",
    "save_failures": "Blocks not saved for another reason.",
    "save_drops": "Blocks given up before saving: too many saves under way, or the pool had failed a moment ago.",
}
"""Name to meaning. Every counter is a number of events since the last report."""


class Counters:
    """Counts of one process since the last time they were taken."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def add(self, **counts: int) -> None:
        for name, count in counts.items():
            if count:
                self._counts[name] = self._counts.get(name, 0) + count

    def take(self) -> MemCacheStats | None:
        """What was counted, or None when nothing was; counting starts anew."""
        if not self._counts:
            return None
        counts, self._counts = self._counts, {}
        return MemCacheStats(data=dict(counts))


class MemCacheStats(KVConnectorStats):
    """Counts by name; those of several ranks and steps add up."""

    def reset(self) -> None:
        self.data: dict[str, Any] = {}

    def is_empty(self) -> bool:
        return not any(self.data.values())

    def aggregate(self, other: KVConnectorStats) -> MemCacheStats:
        for name, count in other.data.items():
            self.data[name] = self.data.get(name, 0) + count
        return self

    def reduce(self) -> dict[str, int | float]:
        return {name: self.data[name] for name in COUNTERS if self.data.get(name)}


class MemCachePromMetrics(KVConnectorPromMetrics):
    """The counters as ``vllm:memcache_<name>_total``."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._counters: dict[str, Any] = {
            name: self._counter_cls(name=f"vllm:memcache_{name}", documentation=meaning, labelnames=self._labelnames)
            for name, meaning in COUNTERS.items()
        }

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        for name, count in transfer_stats_data.items():
            counter = self._counters.get(name)
            if counter is not None and count:
                counter.labels(*self.per_engine_labelvalues[engine_idx]).inc(count)
