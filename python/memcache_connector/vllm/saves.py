"""Which KV blocks are being saved, and the references that keep them from reuse until they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from memcache_connector.vllm.geometry import Group
from memcache_connector.vllm.metadata import GroupBlocks, SaveJob

NULL_BLOCK = 0
"""vLLM's placeholder for a block that is not there: never read, never written."""

BLOCKS_PER_JOB = 256
"""References are dropped job by job: a long prompt's blocks become reusable as its jobs finish."""


class SaveLedger:
    """The saves under way, as the scheduler sees them.

    A block handed to :meth:`offer` gets one reference in vLLM's block pool, so it is neither reused nor evicted while
    a worker reads it, even when its request ends. The reference is dropped when all ranks have reported the job. At
    most ``limit`` blocks are held at a time.
    """

    def __init__(self, ranks: int, limit: int) -> None:
        self._ranks = ranks
        self._limit = limit
        self._pool: Any = None
        self._next_job = 0
        self._jobs: dict[int, tuple[list[int], int]] = {}
        self._held: set[int] = set()
        self._gathered: list[tuple[int, int, bytes]] = []

    def bind(self, block_pool: Any) -> None:
        """The pool whose blocks are held. Before this, nothing can be saved."""
        self._pool = block_pool

    @property
    def pending(self) -> bool:
        """Whether any reference is held."""
        return bool(self._held)

    def room(self) -> int:
        """Blocks that can still be taken."""
        return self._limit - len(self._held) if self._pool is not None else 0

    def offer(self, group: Group, table: Sequence[int], first: int, end: int, hashes: Sequence[bytes]) -> int:
        """Take blocks ``first..end`` of a request's block table for saving.

        ``hashes`` are the request's block hashes. Returns the first block not taken: ``end``, or less when the limit
        is reached. Null blocks, and blocks that are being saved already, count as taken.
        """
        every = group.hashes_per_block
        for index in range(first, end):
            block = table[index]
            if block == NULL_BLOCK or block in self._held:
                continue
            if self.room() <= 0:
                return index
            self._pool.touch((self._pool.blocks[block],))
            self._held.add(block)
            self._gathered.append((group.index, block, hashes[(index + 1) * every - 1]))
        return end

    def take_jobs(self) -> list[SaveJob]:
        """What was offered since the last call, as jobs for the workers."""
        gathered, self._gathered = self._gathered, []
        return [self._job(gathered[at : at + BLOCKS_PER_JOB]) for at in range(0, len(gathered), BLOCKS_PER_JOB)]

    def _job(self, entries: Sequence[tuple[int, int, bytes]]) -> SaveJob:
        job, self._next_job = self._next_job, self._next_job + 1
        self._jobs[job] = ([block for _, block, _ in entries], self._ranks)
        parts = []
        for group in sorted({group for group, _, _ in entries}):
            chosen = [(block, name) for index, block, name in entries if index == group]
            ids = np.array([block for block, _ in chosen], dtype=np.int32)
            parts.append(GroupBlocks(group, tuple(name for _, name in chosen), ids))
        return SaveJob(job, tuple(parts))

    def finished(self, reports: Iterable[tuple[int, int]]) -> None:
        """Ranks have reported jobs: pairs of a job and how many ranks are done with it."""
        for job, ranks in reports:
            entry = self._jobs.get(job)
            if entry is None:
                continue
            blocks, waiting = entry
            if waiting > ranks:
                self._jobs[job] = (blocks, waiting - ranks)
                continue
            del self._jobs[job]
            self._release(blocks)

    def _release(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            self._held.discard(block)
        # The end of a chain first: vLLM reuses in this order, and a prefix without its start is worth nothing.
        self._pool.free_blocks([self._pool.blocks[block] for block in reversed(blocks)])
