"""Mooncake store over TCP: its master, a client that lends the memory, and this process, which lends none."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from programs import START_S

from .base import Peer
from .processes import PeerError, Services, free_port
from .shapes import Cache

# Without it a batch of more than 1,024 pieces to one peer fails in part instead of waiting.
SETTINGS = {"MC_TCP_MAX_QUEUED_TRANSFERS_PER_PEER": "65535", "GLOG_minloglevel": "3"}


class MooncakePeer(Peer):
    """`batch_put_from_multi_buffers` and `batch_get_into_multi_buffers`, buffers registered."""

    def __init__(self, services: Services, pool_bytes: int, address: str | None) -> None:
        os.environ.update(SETTINGS)
        try:
            from mooncake.store import MooncakeDistributedStore
        except ImportError as error:
            raise PeerError(f"not installed: {error}") from error
        if address is None:
            port = free_port()
            master = Path(sys.executable).parent / "mooncake_master"
            metrics = free_port()
            services.start([str(master), f"--rpc_port={port}", f"--metrics_port={metrics}"], env=SETTINGS)
            address = f"127.0.0.1:{port}"
            services.start_python("peers.mooncake_owner", address, str(pool_bytes), ready="lending", env=SETTINGS)
        self._address = address
        self.store = MooncakeDistributedStore()
        join(self.store, address, 0)

    @property
    def address(self) -> str | None:
        return self._address

    def use(self, source: Cache, target: Cache) -> None:
        for run in source.runs + (target.runs if target is not source else []):
            if self.store.register_buffer(run.ctypes.data, run.nbytes) != 0:
                raise PeerError("register_buffer failed")
        self.lengths = source.lengths
        self.source = [source.addresses(block) for block in range(source.shape.blocks)]
        self.target = [target.addresses(block) for block in range(target.shape.blocks)]

    def put(self, keys: Sequence[str], blocks: Sequence[int]) -> None:
        lists = [self.source[block] for block in blocks]
        results = self.store.batch_put_from_multi_buffers(list(keys), lists, [self.lengths] * len(keys))
        if any(results):
            raise PeerError(f"put returned {results}")

    def get(self, keys: Sequence[str], blocks: Sequence[int]) -> None:
        lists = [self.target[block] for block in blocks]
        results = self.store.batch_get_into_multi_buffers(list(keys), lists, [self.lengths] * len(keys))
        if any(result < 0 for result in results):
            raise PeerError(f"get returned {results}")

    def exist(self, keys: Sequence[str]) -> int:
        return sum(found == 1 for found in self.store.batch_is_exist(list(keys)))

    def clear(self) -> None:
        self.store.remove_all(True)

    def close(self) -> None:
        self.store.close()


def join(store: object, address: str, lend_bytes: int) -> None:
    """Sets a client up; tries again while the master starts."""
    deadline = time.monotonic() + START_S
    while True:
        code = store.setup(  # type: ignore[attr-defined]
            f"127.0.0.1:{free_port()}", "P2PHANDSHAKE", lend_bytes, 64 << 20, "tcp", "", address
        )
        if code == 0:
            return
        if time.monotonic() > deadline:
            raise PeerError(f"setup returned {code}")
        time.sleep(0.2)
