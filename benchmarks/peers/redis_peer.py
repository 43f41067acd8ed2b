"""Redis over its Unix socket: a value is one string, so this side joins and cuts the pieces."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence

from programs import START_S

from .base import Peer
from .processes import PeerError, Services
from .shapes import Cache


class RedisPeer(Peer):
    """MSET and MGET of whole blocks."""

    def __init__(self, services: Services, pool_bytes: int, address: str | None) -> None:
        try:
            import redis
        except ImportError as error:
            raise PeerError(f"no Python client: {error}") from error
        server = shutil.which("redis-server")
        if server is None:
            raise PeerError("no redis-server on the PATH")
        if address is None:
            address = str(services.folder / "redis.sock")
            options = ["--port", "0", "--unixsocket", address, "--save", "", "--maxmemory", str(pool_bytes)]
            services.start([server, *options, "--dir", str(services.folder)])
        self._address = address
        self.client = redis.Redis(unix_socket_path=address)
        deadline = time.monotonic() + START_S
        while True:
            try:
                self.client.ping()
                return
            except redis.ConnectionError as error:
                if time.monotonic() > deadline:
                    raise PeerError(f"redis-server does not answer: {error}") from error
                time.sleep(0.05)

    @property
    def address(self) -> str | None:
        return self._address

    def use(self, source: Cache, target: Cache) -> None:
        blocks = range(source.shape.blocks)
        self.source = [[memoryview(piece) for piece in source.pieces(block)] for block in blocks]
        self.target = [[memoryview(piece) for piece in target.pieces(block)] for block in blocks]

    def put(self, keys: Sequence[str], blocks: Sequence[int]) -> None:
        self.client.mset({key: b"".join(self.source[block]) for key, block in zip(keys, blocks, strict=True)})

    def get(self, keys: Sequence[str], blocks: Sequence[int]) -> None:
        for value, block in zip(self.client.mget(keys), blocks, strict=True):
            if value is None:
                raise PeerError("a miss")
            whole, at = memoryview(value), 0
            for piece in self.target[block]:
                piece[:] = whole[at : at + len(piece)]
                at += len(piece)

    def exist(self, keys: Sequence[str]) -> int:
        return int(self.client.exists(*keys))

    def clear(self) -> None:
        self.client.flushall()

    def close(self) -> None:
        self.client.close()
