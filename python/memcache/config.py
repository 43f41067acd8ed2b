"""Settings of a store."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

from memcache import _core

PathLike: TypeAlias = "str | os.PathLike[str]"


def as_overrides(values: dict[str, Any]) -> list[tuple[str, str]]:
    """Keyword arguments as the text that files and the environment would hold."""
    return [(key, _text(value)) for key, value in values.items() if value is not None]


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


@dataclass(frozen=True)
class StoreConfig:
    """Settings of a :class:`memcache.Store`.

    Built by hand it holds exactly what was given and the defaults below; :meth:`load` also asks a file and the
    environment. Values are checked when the store is opened, or by :meth:`load`.
    """

    meta_address: str = ""
    """``host:port``, ``unix:/path`` or ``unix-abstract:name``. Empty: this process hosts a MetaService itself."""
    pool_id: str = ""
    """Processes of this host with the same id share a hosted MetaService. Without meaning with an address."""
    lend_bytes: int | str = 0
    """Host memory to lend, in bytes or as ``"4GB"``; 0 lends nothing."""
    protocol: str = "auto"
    """``"auto"``, ``"host_shm"``, ``"host_rdma"`` or ``"host_tcp"``: how memory of other processes is reached."""
    rdma_device: str = ""
    """``"device"``, ``"device:port"`` or ``"device:port:gid_index"``. Empty: the first with an active port."""
    node_name: str = ""
    """Name for people. Default: host name and process id."""
    data_host: str = ""
    """Address peers on other hosts use for data. Default: loopback, or the route to the MetaService."""
    timeout_ms: int = 5000
    """Deadline of a call that names none, in milliseconds."""
    checksum: str = "always"
    """CRC-32C of payloads. ``"always"``: made by every put, verified by every get. ``"sampled"``: made by every put,
    verified by one get in ``checksum_one_in``. ``"off"``: neither. Generation and length are compared in any case."""
    checksum_one_in: int = 16
    """How many objects share one verification where ``checksum`` is ``"sampled"``."""
    replica_num: int = 1
    """Replicas that a put makes of each object, on distinct nodes, 1 to 8, unless it says otherwise."""
    repair_bytes_per_s: int | str = "1GB"
    """Bytes a second copied into lent memory to restore lost replicas and to take over from drained nodes."""
    huge_pages: bool = False
    """Back lent memory with huge pages where there are any."""
    path: str = "auto"
    """Path between the pool and the engine's memory: ``"auto"``, or ``"0"`` to ``"3"`` to force one (docs/adr/0007)."""
    costs: str = ""
    """File with the costs of paths. Empty: measured when first needed, kept in the user's cache folder."""
    transfer_threads: int = 0
    """Threads that copy for one call, its own included; 0: as many as cores, at most 4, of which all but one rest while
    more threads of the machine want to run than it has processors."""
    copy_kernel: str = "auto"
    """How large copies of host memory are made: ``"auto"``, ``"avx2-nt-lines"``, ``"avx2-nt-2-runs"`` or
    ``"avx512-nt-4-runs"``. The first store of a process that names one decides for all of it (docs/adr/0010)."""
    holdings_slots: int = 0
    """Most objects of the lent memory that are written down in it, so that they are found again after a restart of the
    MetaService; 0: one for every 64 KB, and at least one for every 4 KB up to 1024."""
    persist: str = ""
    """File to lend instead of memory that ends with this process, on tmpfs or hugetlbfs such as ``/dev/shm/NAME``: a
    process that lends it again brings back what it holds. It stays until somebody deletes it."""

    @classmethod
    def load(cls, file: PathLike | None = None, /, **overrides: Any) -> StoreConfig:
        """Settings from, later ones winning: defaults, ``file`` (or the one ``MEMCACHE_CONFIG`` names), the
        environment (``MEMCACHE_META_ADDRESS``, ``MEMCACHE_LEND_BYTES``, ...), ``overrides``.

        Raises :class:`memcache.ConfigError` naming the source, the key and what is allowed; an unknown key is told
        with the nearest known one.
        """
        settings = dict(_core.store_settings(os.fspath(file) if file is not None else None, as_overrides(overrides)))
        values: dict[str, Any] = {}
        for entry in fields(cls):
            text = settings[entry.name]
            if entry.name in ("timeout_ms", "transfer_threads", "replica_num", "checksum_one_in", "holdings_slots"):
                values[entry.name] = int(text)
            elif entry.name == "huge_pages":
                values[entry.name] = text == "true"
            else:
                values[entry.name] = text
        return cls(**values)

    def overrides(self) -> list[tuple[str, str]]:
        """Every setting as (key, text), as the native half takes them."""
        return as_overrides({entry.name: getattr(self, entry.name) for entry in fields(self)})
