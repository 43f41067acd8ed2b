"""Settings of the connector: what ``kv_connector_extra_config`` may hold."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import memcache
from memcache_connector.common.lend import automatic_lend

AUTO = "auto"
STORE_KEYS = tuple(entry.name for entry in fields(memcache.StoreConfig))
"""Keys that are handed on to :class:`memcache.StoreConfig` as they are."""


class ConnectorConfigError(ValueError):
    """``kv_connector_extra_config`` holds something the connector cannot use."""


@dataclass(frozen=True)
class ConnectorConfig:
    """Settings of one engine. All times are milliseconds; all of them can be given in ``kv_connector_extra_config``.

    Beside these, every key of :class:`memcache.StoreConfig` is accepted there (``meta_address``, ``lend_bytes``,
    ``protocol``, ...) and wins over the environment (``MEMCACHE_META_ADDRESS``, ...), which wins over the file named
    by ``MEMCACHE_CONFIG``. ``persist`` names a file a rank: where an engine has several, and where it is one of several
    data-parallel ones, each appends its numbers (:func:`rank_file`).
    """

    model_id: str = ""
    """Name of the model in object keys; engines share KV only under the same name. Default: vLLM's model argument
    (set this where engines load one model from different paths)."""

    enable_lookup: bool = True
    """Look prompts up in the pool and load what is there."""

    consumer_saves: bool = False
    """With ``kv_role=kv_consumer``: save the blocks this engine computes, too."""

    save_decode_blocks: bool = True
    """Save blocks that hold generated tokens, not prompt blocks alone (the next turn of a chat reads them)."""

    lookup_wait_ms: int = 2
    """Longest a scheduler step waits for look-ups; a look-up that takes longer is asked for again in a later step."""

    lookup_timeout_ms: int = 500
    """After this long without an answer a look-up counts as a miss."""

    pending_wait_ms: int = 1000
    """How long a request waits for blocks that another engine is writing to the pool right now. 0: not at all."""

    load_timeout_ms: int = 5000
    """Deadline of loading a request's blocks; what is not there by then is recomputed."""

    save_timeout_ms: int = 5000
    """Deadline of saving a batch of blocks; also the longest the pool can keep a KV block of the engine from reuse."""

    max_pinned_blocks: int = 0
    """Most KV blocks of the engine held for saves that are not done; further blocks wait, and are given up when
    their request ends. 0: a quarter of the KV cache."""

    retry_ms: int = 500
    """Back-off after a failure of the pool: until it has passed, requests are served as without a pool."""

    retry_max_ms: int = 5000
    """Upper end of the back-off, which doubles with each failure in a row."""

    reset_clears_pool: bool = True
    """vLLM's "reset the external cache too" removes every object of the pool. False: it is refused."""

    store: Mapping[str, Any] = field(default_factory=dict)
    """The keys meant for :class:`memcache.StoreConfig`."""

    @classmethod
    def parse(cls, extra: Mapping[str, Any]) -> ConnectorConfig:
        """Settings from ``kv_connector_extra_config``.

        Raises :class:`ConnectorConfigError` for an unknown key (naming the nearest known one), a wrong type or a
        negative number.
        """
        own = {entry.name: entry for entry in fields(cls) if entry.name != "store"}
        values: dict[str, Any] = {}
        store: dict[str, Any] = {}
        for key, value in extra.items():
            if key in own:
                values[key] = _checked(key, value, type(own[key].default))
            elif key in STORE_KEYS:
                store[key] = value
            else:
                raise ConnectorConfigError(_unknown(key, (*own, *STORE_KEYS)))
        return cls(**values, store=store)


def _checked(key: str, value: Any, kind: type[Any]) -> Any:
    if (kind is int and isinstance(value, bool)) or not isinstance(value, kind):
        raise ConnectorConfigError(f"kv_connector_extra_config: {key} has to be {kind.__name__}, got {value!r}")
    if kind is int and value < 0:
        raise ConnectorConfigError(f"kv_connector_extra_config: {key} must not be negative, got {value}")
    return value


def _unknown(key: str, known: tuple[str, ...]) -> str:
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else f"; known keys: {', '.join(sorted(known))}"
    return f"kv_connector_extra_config: unknown key {key!r}{hint}"


def pool_id(engine_id: str) -> str:
    """The name under which the processes of one engine find their embedded pool.

    vLLM gives every data-parallel rank the engine's id with ``_dp<rank>`` appended; the ranks of one host share.
    """
    return re.sub(r"_dp\d+$", "", engine_id)


def rank_file(persist: str, engine_id: str, ranks: int, rank: int) -> str:
    """The file that one worker lends where ``persist`` names one: no two workers of a host may lend the same."""
    if not persist:
        return ""
    data_parallel = re.search(r"_dp\d+$", engine_id)
    return f"{persist}{data_parallel[0] if data_parallel else ''}{f'_rank{rank}' if ranks > 1 else ''}"


def store_overrides(config: ConnectorConfig, engine_id: str, worker: bool, local_ranks: int) -> dict[str, Any]:
    """What to override in ``memcache.StoreConfig`` for one process of the engine.

    The scheduler lends nothing. A worker lends ``lend_bytes`` where the extra configuration, the environment or the
    configuration file says so, else an automatic amount (:func:`~memcache_connector.common.lend.automatic_lend`).
    """
    overrides = dict(config.store)
    overrides.setdefault("pool_id", pool_id(engine_id))
    lend = overrides.pop("lend_bytes", None)
    if not worker:
        overrides["lend_bytes"] = 0
    elif lend is not None and lend != AUTO:
        overrides["lend_bytes"] = lend
    else:
        memcache.StoreConfig.load(**overrides)  # a bad file or variable is told before it is looked into
        if lend == AUTO or not _lend_configured():
            overrides["lend_bytes"] = automatic_lend(local_ranks)
    return overrides


def _lend_configured() -> bool:
    """Whether the environment or the configuration file says how much to lend; an explicit 0 counts."""
    if "MEMCACHE_LEND_BYTES" in os.environ:
        return True
    path = os.environ.get("MEMCACHE_CONFIG")
    if not path:
        return False
    with open(path, "rb") as file:
        settings = tomllib.load(file)
    return "lend_bytes" in settings or "lend_bytes" in settings.get("store", {})
