"""KV connector for vLLM 0.30 and newer.

``vllm serve MODEL --kv-transfer-config memcache`` is all it takes: with no address configured the engine keeps a pool
of its own in host memory; with one (``MEMCACHE_META_ADDRESS=host:port``, a file named by ``MEMCACHE_CONFIG``, or
``kv_connector_extra_config``) it joins the pool found there. The other spellings::

    --kv-transfer-config '{"kv_connector":"MemCacheConnector","kv_role":"kv_both","kv_load_failure_policy":"recompute"}'
    --kv-transfer-config.kv_connector MemCacheConnector --kv-transfer-config.kv_role kv_both
    ... "kv_connector_module_path":"memcache_connector.vllm"        where the plugin is not loaded

All settings: :class:`memcache_connector.vllm.config.ConnectorConfig`. Importing this package does not import vLLM.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memcache_connector.vllm.connector import MemCacheConnector

__all__ = ["MemCacheConnector"]


def __getattr__(name: str) -> Any:
    if name == "MemCacheConnector":
        from memcache_connector.vllm.connector import MemCacheConnector

        return MemCacheConnector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
