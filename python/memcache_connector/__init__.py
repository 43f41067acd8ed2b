"""Connectors that let inference engines keep their KV cache in a MemCache pool.

Each engine has a sub-package of its own; importing this package imports none of them and no engine.

* :mod:`memcache_connector.vllm`: vLLM 0.30 and newer (``vllm serve MODEL --kv-transfer-config memcache``).
"""
