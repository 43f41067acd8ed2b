"""The two services, started from Python."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from memcache import _core
from memcache.config import PathLike, as_overrides
from memcache.errors import Closed

C = TypeVar("C", _core.MetaService, _core.LocalService)


class _Service(ABC, Generic[C]):
    """What both have in common: settings, one running instance at a time, start on entry and stop on exit."""

    def __init__(self, config: PathLike | None = None, **overrides: Any) -> None:
        self._path = os.fspath(config) if config is not None else None
        self._overrides = as_overrides(overrides)
        self._core: C | None = None
        self._stopped = threading.Event()

    @abstractmethod
    def _open(self) -> C:
        """Starts the native half."""

    def start(self) -> Self:
        """Starts it; see the class for what is there when this returns, and for what it raises."""
        if self._core is None:
            self._stopped.clear()
            self._core = self._open()
        return self

    def stop(self, timeout_ms: int = 2000) -> None:
        """Stops it within ``timeout_ms`` milliseconds. Idempotent."""
        core, self._core = self._core, None
        if core is not None:
            core.stop(timeout_ms)
        self._stopped.set()

    def wait(self, timeout_ms: int | None = None) -> bool:
        """Waits until another thread stops it, or for ``timeout_ms`` milliseconds; whether it is stopped."""
        return self._stopped.wait(None if timeout_ms is None else timeout_ms / 1000)

    def _running(self) -> C:
        if self._core is None:
            raise Closed(f"the {type(self).__name__} is not running")
        return self._core

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class MetaService(_Service[_core.MetaService]):
    """A MetaService in this process: where every object is, who lends what.

    Settings are the keys of ``conf/meta.toml``; later ones win: defaults, the file ``config``, the environment
    (``MEMCACHE_META_LISTEN``, ...), keyword arguments. It serves when :meth:`start` returns; :meth:`stop` ends open
    sessions. As a context manager it is started on entry, stopped on exit.

    :meth:`start` raises :class:`memcache.ConfigError` for a bad setting and :class:`memcache.AddressInUse` naming the
    address.
    """

    def _open(self) -> _core.MetaService:
        return _core.MetaService(self._path, self._overrides)

    @property
    def address(self) -> str:
        """Where it serves, with the real port where port 0 was asked for."""
        return self._running().address


class LocalService(_Service[_core.LocalService]):
    """Lends memory of this process to a pool: other processes read and write it by address.

    Settings are the keys of ``conf/local.toml``; later ones win: defaults, the file ``config``, the environment
    (``MEMCACHE_LOCAL_LEND_BYTES``, ...), keyword arguments. The memory is there when :meth:`start` returns; joining the
    pool goes on in the background (:meth:`wait_joined`), also after the MetaService restarted. :meth:`stop` leaves the
    pool and frees the memory; what it held is gone, unless ``persist`` names a file, which the next to lend it brings
    back with what it holds. As a context manager it is started on entry, stopped on exit.

    :meth:`start` raises :class:`memcache.ConfigError` for a bad setting, :class:`memcache.AddressInUse` for a taken
    data port and :class:`memcache.MemCacheError` if the memory cannot be had.
    """

    def _open(self) -> _core.LocalService:
        return _core.LocalService(self._path, self._overrides)

    def wait_joined(self, timeout_ms: int) -> bool:
        """Waits until the pool has accepted the memory; whether it has."""
        return self._running().wait_joined(timeout_ms)

    @property
    def drain_ms(self) -> int:
        """The setting of that name: how long the program empties itself on SIGTERM, in milliseconds."""
        return self._running().drain_ms

    def drain(self, timeout_ms: int) -> bool:
        """Has other nodes copy what is only here, and leaves the pool; whether nothing was left within ``timeout_ms``
        milliseconds. New objects go elsewhere from now on."""
        return self._running().drain(timeout_ms)

    def wait_drained(self, timeout_ms: int) -> bool:
        """Waits until somebody has had this node emptied and it has left; whether it has."""
        return self._running().wait_drained(timeout_ms)

    @property
    def node_id(self) -> str:
        """Who this node is in the pool, in hexadecimal."""
        return self._running().node_id

    @property
    def meta_address(self) -> str:
        """Where the MetaService is looked for."""
        return self._running().meta_address
