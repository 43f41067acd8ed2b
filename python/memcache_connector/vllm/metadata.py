"""What the scheduler's and the workers' halves of the connector tell each other."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata, KVConnectorWorkerMetadata

BlockIds: TypeAlias = npt.NDArray[np.int32]
"""Numbers of KV-cache blocks, shape ``(n,)``."""


@dataclass(frozen=True)
class GroupBlocks:
    """Blocks of one KV-cache group and the hashes that name their content."""

    group: int
    hashes: tuple[bytes, ...]
    block_ids: BlockIds


@dataclass(frozen=True)
class LoadPlan:
    """Blocks to fill from the pool before the request can run."""

    req_id: str
    parts: tuple[GroupBlocks, ...]


@dataclass(frozen=True)
class SaveJob:
    """Blocks to save. The scheduler holds references on them until every worker has reported ``job_id``."""

    job_id: int
    parts: tuple[GroupBlocks, ...]


@dataclass
class MemCacheMetadata(KVConnectorMetadata):
    """One step's orders of the scheduler to its workers."""

    key_prefix: bytes = b""
    """The engine's 16-byte fingerprint: the scheduler alone computes it, so all ranks agree."""

    loads: list[LoadPlan] = field(default_factory=list)
    saves: list[SaveJob] = field(default_factory=list)
    idle: bool = False
    """Nothing is computed in this step: a worker with transfers under way may wait a moment for them."""


@dataclass
class MemCacheWorkerMetadata(KVConnectorWorkerMetadata):
    """One step's reports of the workers to their scheduler."""

    finished_saves: Counter[int] = field(default_factory=Counter)
    """Save job to number of ranks that are done with it, however it ended."""

    failed_loads: set[str] = field(default_factory=set)
    """Requests of which some block was not loaded."""

    pool_failed: bool = False
    """A transfer ended without an answer of the pool."""

    pool_answered: bool = False
    """A transfer reached the pool."""

    unusable: str = ""
    """Why a worker cannot use the pool at all; the scheduler stops planning for it."""

    def aggregate(self, other: KVConnectorWorkerMetadata) -> MemCacheWorkerMetadata:
        """This report and another rank's as one."""
        if not isinstance(other, MemCacheWorkerMetadata):
            raise TypeError(f"cannot aggregate with {type(other).__name__}")
        return MemCacheWorkerMetadata(
            finished_saves=self.finished_saves + other.finished_saves,
            failed_loads=self.failed_loads | other.failed_loads,
            pool_failed=self.pool_failed or other.pool_failed,
            pool_answered=self.pool_answered or other.pool_answered,
            unusable=self.unusable or other.unusable,
        )
