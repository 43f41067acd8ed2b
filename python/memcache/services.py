"""The two services, started from Python."""

from __future__ import annotations

import os
import threading
from types import TracebackType
from typing import Any, Self

from memcache import _core
from memcache.config import PathLike, as_overrides
from memcache.errors import Closed


class MetaService:
    """A MetaService in this process: where every object is, who lends what.

    Settings are the keys of ``conf/meta.toml``; later ones win: defaults, the file ``config``, the environment
    (``MEMCACHE_META_LISTEN``, ...), keyword arguments. As a context manager it is started on entry, stopped on exit.
    """

    def __init__(self, config: PathLike | None = None, **overrides: Any) -> None:
        self._path = os.fspath(config) if config is not None else None
        self._overrides = as_overrides(overrides)
        self._core: _core.MetaService | None = None
        self._stopped = threading.Event()

    def start(self) -> Self:
        """Starts it; it serves when this returns.

        Raises :class:`memcache.ConfigError` for a bad setting and :class:`memcache.AddressInUse` naming the address.
        """
        if self._core is None:
            self._stopped.clear()
            self._core = _core.MetaService(self._path, self._overrides)
        return self

    def stop(self, timeout_ms: int = 2000) -> None:
        """Stops it; open sessions end. Idempotent."""
        core, self._core = self._core, None
        if core is not None:
            core.stop(timeout_ms)
        self._stopped.set()

    def wait(self, timeout_ms: int | None = None) -> bool:
        """Waits until another thread stops it, or for ``timeout_ms`` milliseconds; whether it is stopped."""
        return self._stopped.wait(None if timeout_ms is None else timeout_ms / 1000)

    @property
    def address(self) -> str:
        """Where it serves, with the real port where port 0 was asked for."""
        if self._core is None:
            raise Closed("the MetaService is not running")
        return self._core.address

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class LocalService:
    """Lends memory of this process to a pool: other processes read and write it by address.

    Settings are the keys of ``conf/local.toml``; later ones win: defaults, the file ``config``, the environment
    (``MEMCACHE_LOCAL_LEND_BYTES``, ...), keyword arguments. It joins again by itself after the MetaService restarted.
    As a context manager it is started on entry, stopped on exit.
    """

    def __init__(self, config: PathLike | None = None, **overrides: Any) -> None:
        self._path = os.fspath(config) if config is not None else None
        self._overrides = as_overrides(overrides)
        self._core: _core.LocalService | None = None
        self._stopped = threading.Event()

    def start(self) -> Self:
        """Takes the memory and serves it; joining the pool goes on in the background (:meth:`wait_joined`).

        Raises :class:`memcache.ConfigError` for a bad setting, :class:`memcache.AddressInUse` for a taken data port and
        :class:`memcache.MemCacheError` if the memory cannot be had.
        """
        if self._core is None:
            self._stopped.clear()
            self._core = _core.LocalService(self._path, self._overrides)
        return self

    def stop(self, timeout_ms: int = 2000) -> None:
        """Leaves the pool and frees the memory; what it held is gone. Idempotent."""
        core, self._core = self._core, None
        if core is not None:
            core.stop(timeout_ms)
        self._stopped.set()

    def wait(self, timeout_ms: int | None = None) -> bool:
        """Waits until another thread stops it, or for ``timeout_ms`` milliseconds; whether it is stopped."""
        return self._stopped.wait(None if timeout_ms is None else timeout_ms / 1000)

    def wait_joined(self, timeout_ms: int) -> bool:
        """Waits until the pool has accepted the memory; whether it has."""
        return self._running().wait_joined(timeout_ms)

    @property
    def node_id(self) -> str:
        """Who this node is in the pool, in hexadecimal."""
        return self._running().node_id

    @property
    def meta_address(self) -> str:
        """Where the MetaService is looked for."""
        return self._running().meta_address

    def _running(self) -> _core.LocalService:
        if self._core is None:
            raise Closed("the LocalService is not running")
        return self._core

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
