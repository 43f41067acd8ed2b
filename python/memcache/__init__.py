"""MemCache: a distributed pool for the KV cache of LLM inference.

>>> import memcache
>>> with memcache.MetaService(listen="127.0.0.1:0") as meta, memcache.Store(
...     meta_address=meta.address, lend_bytes="16MB"
... ) as store:
...     store.put("greeting", b"hello")
...     store.get("greeting")
<PutStatus.STORED: 0>
b'hello'
"""

from __future__ import annotations

from memcache._core import __version__
from memcache.completion import Completion
from memcache.config import StoreConfig
from memcache.errors import (
    AddressInUse,
    Busy,
    Closed,
    ConfigError,
    ForkError,
    InvalidArgument,
    MemCacheError,
    NoSpace,
    SizeMismatch,
    Timeout,
    TooLarge,
    Unavailable,
)
from memcache.layout import KvLayout
from memcache.services import LocalService, MetaService
from memcache.status import GetStatus, PinStatus, Presence, PutStatus
from memcache.store import FieldDifference, Store

__all__ = [
    "AddressInUse",
    "Busy",
    "Closed",
    "Completion",
    "ConfigError",
    "FieldDifference",
    "ForkError",
    "GetStatus",
    "InvalidArgument",
    "KvLayout",
    "LocalService",
    "MemCacheError",
    "MetaService",
    "NoSpace",
    "PinStatus",
    "Presence",
    "PutStatus",
    "SizeMismatch",
    "Store",
    "StoreConfig",
    "Timeout",
    "TooLarge",
    "Unavailable",
    "__version__",
]
