"""This project: a MetaService, a LocalService that lends the memory, and this process, which lends nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

import memcache

from .base import Peer
from .processes import PeerError, Services
from .shapes import Cache


class MemcachePeer(Peer):
    """Over one protocol, with or without checksums."""

    protocol = "host_shm"
    checksum = "always"

    def __init__(self, services: Services, pool_bytes: int, address: str | None) -> None:
        if address is None:
            line = services.start_python("memcache.meta", "--set", "listen=127.0.0.1:0", ready="serving on")
            address = line.split()[-1]
            settings = (f"meta_address={address}", f"lend_bytes={pool_bytes}")
            arguments = [part for setting in settings for part in ("--set", setting)]
            services.start_python("memcache.local", *arguments, ready="joined")
        self._address = address
        self.store = memcache.Store(
            meta_address=address, protocol=self.protocol, checksum=self.checksum, timeout_ms=60_000
        )

    @property
    def address(self) -> str | None:
        return self._address

    def use(self, source: Cache, target: Cache) -> None:
        self.source = self.store.register_layout(source.tensors)
        self.target = self.store.register_layout(target.tensors)

    def put(self, keys: Sequence[str], blocks: Sequence[int]) -> None:
        check(self.store.put_blocks(self.source, [key.encode() for key in keys], np.asarray(blocks)))

    def get(self, keys: Sequence[str], blocks: Sequence[int]) -> None:
        check(self.store.get_blocks(self.target, [key.encode() for key in keys], np.asarray(blocks)))

    def exist(self, keys: Sequence[str]) -> int:
        return int(self.store.exist_batch([key.encode() for key in keys]).sum())

    def clear(self) -> None:
        self.store.remove_all()

    def close(self) -> None:
        self.store.close()


class MemcacheShm(MemcachePeer):
    """Shared memory, checksums on (the default)."""


class MemcacheShmNoSums(MemcachePeer):
    """Shared memory, checksums off."""

    checksum = "off"


class MemcacheTcp(MemcachePeer):
    """TCP, checksums on (the default)."""

    protocol = "host_tcp"


class MemcacheTcpNoSums(MemcachePeer):
    """TCP, checksums off, as the peers have none."""

    protocol = "host_tcp"
    checksum = "off"


def check(statuses: np.ndarray) -> None:
    """An error if any object failed."""
    if statuses.any():
        raise PeerError(f"statuses {statuses}")
