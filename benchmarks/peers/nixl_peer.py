"""NIXL with UCX: one-sided reads and writes of another process's memory. No keys, no metadata: a floor, not a store."""

from __future__ import annotations

import base64
import itertools
import os
import time
from collections.abc import Sequence
from typing import Any

from .base import Peer
from .processes import PeerError, Services
from .shapes import Cache

WAIT_S = 60.0


class NixlPeer(Peer):
    """One descriptor a piece on both sides; a transfer handle is made and released for each call."""

    has_keys = False

    def __init__(self, services: Services, pool_bytes: int, address: str | None) -> None:
        os.environ.setdefault("NIXL_LOG_LEVEL", "ERROR")
        if address is not None:
            raise PeerError("several readers are not measured")
        self.agent = agent("reader")
        line = services.start_python("peers.nixl_owner", str(pool_bytes), ready="lending")
        _, base, metadata = line.split()
        self.base = int(base)
        self.remote = self.agent.add_remote_agent(base64.b64decode(metadata))

    def use(self, source: Cache, target: Cache) -> None:
        for run in source.runs + target.runs:
            self.agent.register_memory([(run.ctypes.data, run.nbytes, 0, "")], "DRAM")
        self.block_bytes = source.shape.block_bytes
        self.lengths = source.lengths
        self.starts = [0, *itertools.accumulate(source.lengths[:-1])]
        self.source = [source.addresses(block) for block in range(source.shape.blocks)]
        self.target = [target.addresses(block) for block in range(target.shape.blocks)]

    def put(self, keys: Sequence[str], blocks: Sequence[int]) -> None:
        self._move("WRITE", self.source, blocks)

    def get(self, keys: Sequence[str], blocks: Sequence[int]) -> None:
        self._move("READ", self.target, blocks)

    def clear(self) -> None:
        """There are no objects."""

    def close(self) -> None:
        self.agent.remove_remote_agent(self.remote)

    def _move(self, operation: str, lists: list[list[int]], blocks: Sequence[int]) -> None:
        near: list[tuple[int, int, int]] = []
        far: list[tuple[int, int, int]] = []
        for block in blocks:
            origin = self.base + block * self.block_bytes
            for address, start, length in zip(lists[block], self.starts, self.lengths, strict=True):
                near.append((address, length, 0))
                far.append((origin + start, length, 0))
        local = self.agent.get_xfer_descs(near, "DRAM")
        remote = self.agent.get_xfer_descs(far, "DRAM")
        handle = self.agent.initialize_xfer(operation, local, remote, self.remote, b"")
        state = self.agent.transfer(handle)
        deadline = time.monotonic() + WAIT_S
        while state not in ("DONE", "ERR"):
            state = self.agent.check_xfer_state(handle)
            if time.monotonic() > deadline:
                raise PeerError(f"a transfer is still {state} after {WAIT_S} s")
        self.agent.release_xfer_handle(handle)
        if state == "ERR":
            raise PeerError("a transfer failed")


def agent(name: str) -> Any:
    """An agent with the UCX backend."""
    try:
        from nixl._api import nixl_agent, nixl_agent_config
    except ImportError as error:
        raise PeerError(f"not installed: {error}") from error
    return nixl_agent(name, nixl_agent_config(backends=["UCX"]))
