"""Which engines can read each other's KV: the fields of an engine's fingerprint.

Two engines share objects exactly when all fields are equal. A block hash names the tokens (and LoRA adapter,
multimodal items, cache salt) of a block and of everything before it, and nothing else: all that decides the bytes of
a block beside its tokens has to be here.
"""

from __future__ import annotations

import hashlib
import json
import os
from typing import TYPE_CHECKING, Any

from memcache_connector.vllm.geometry import Geometry, first_spec

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

FORMAT = "1"
"""Version of the object format; a change makes all objects of earlier versions unreadable."""

_VOLATILE = frozenset({"_name_or_path", "name_or_path", "transformers_version", "architectures_version"})


def identity_fields(
    vllm_config: VllmConfig, kv_cache_config: KVCacheConfig, geometry: Geometry, model_id: str
) -> dict[str, str]:
    """The fingerprint fields of an engine, name to value."""
    model, cache, parallel = vllm_config.model_config, vllm_config.cache_config, vllm_config.parallel_config
    fields = {
        "format": FORMAT,
        "model": model_id or str(model.model),
        "revision": str(model.revision or ""),
        "model_config": _config_digest(model.hf_config),
        "dtype": str(model.dtype),
        "quantization": str(model.quantization or ""),
        "kv_cache_dtype": str(cache.cache_dtype),
        "tensor_parallel": str(parallel.tensor_parallel_size),
        "pipeline_parallel": str(parallel.pipeline_parallel_size),
        "pipeline_partition": os.environ.get("VLLM_PP_LAYER_PARTITION", ""),
        "decode_context_parallel": str(parallel.decode_context_parallel_size),
        "context_interleave": str(getattr(parallel, "dcp_kv_cache_interleave_size", ""))
        + "/"
        + str(getattr(parallel, "cp_kv_cache_interleave_size", "")),
        "shards": str(geometry.shards),
        "byte_order": byte_order(layout_name(vllm_config, kv_cache_config), kv_cache_config),
        "platform": _platform(vllm_config, geometry),
        "hash_algorithm": str(cache.prefix_caching_hash_algo),
        "hash_seed": _hash_seed(vllm_config),
        "hash_tokens": str(geometry.hash_tokens),
        "drafter": _drafter(vllm_config),
        "groups": _bounded(_describe_groups(kv_cache_config, geometry)),
    }
    if getattr(cache, "calculate_kv_scales", False):
        # The scales come from the first prompts this engine saw: no other engine has them.
        fields["kv_scales"] = _engine_id(vllm_config)
    return fields


def byte_order(layout_name: str, kv_cache_config: KVCacheConfig) -> str:
    """Order of heads (H) and tokens (N) in the bytes of one layer's block: "HN", "NH", or "any" with one head.

    Layers always follow each other in an object, whatever their order in memory; so of the physical layouts LBHNC,
    LHBNC, BLHNC and BHLNC are interchangeable, and LBNHC and BLNHC are.
    """
    if all(first_spec(group).num_heads == 1 for group in kv_cache_config.kv_cache_groups):
        return "any"
    return "HN" if layout_name.index("H") < layout_name.index("N") else "NH"


def layout_name(vllm_config: VllmConfig, kv_cache_config: KVCacheConfig) -> str:
    """The physical layout vLLM chose, by its full name."""
    name = kv_cache_config.kv_cache_layout or vllm_config.cache_config.kv_cache_layout or "LBHNC"
    return {"NHD": "LBNHC", "HND": "LBHNC"}.get(name, name)


def _describe_groups(kv_cache_config: KVCacheConfig, geometry: Geometry) -> str:
    """Each group in the order of its index; equal neighbours are told once."""
    texts: list[tuple[int, str]] = []
    for group, vllm_group in zip(geometry.groups, kv_cache_config.kv_cache_groups, strict=True):
        text = _describe(group.block_tokens, len(group.layers), first_spec(vllm_group))
        if texts and texts[-1][1] == text:
            texts[-1] = (texts[-1][0] + 1, text)
        else:
            texts.append((1, text))
    return "; ".join(f"{count} x {text}" for count, text in texts)


def _bounded(text: str) -> str:
    """``text``, or a digest of it where it is longer than the pool takes (4096 bytes)."""
    raw = text.encode()
    return text if len(raw) <= 4096 else hashlib.sha256(raw).hexdigest()


def _describe(block_tokens: int, layers: int, spec: Any) -> str:
    return (
        f"{type(spec).__name__} layers={layers} tokens={block_tokens} heads={spec.num_heads} states={spec.num_states} "
        f"state_bytes={spec.state_content_size_bytes} dtype={spec.dtype} quant={spec.kv_quant_mode.name} "
        f"window={getattr(spec, 'sliding_window', None)}"
    )


def _config_digest(hf_config: Any) -> str:
    """A short digest of the model's architecture (sizes, rope, layer types): two models of one name differ in it."""
    content = {key: value for key, value in hf_config.to_dict().items() if key not in _VOLATILE}
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _platform(vllm_config: VllmConfig, geometry: Geometry) -> str:
    """Device type; for a CPU also the instruction set, by which its attention kernels pack the keys of a block."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return str(current_platform.device_type)
    import torch

    amx = torch.cpu._is_amx_tile_supported()
    tokens = sorted({group.block_tokens for group in geometry.groups})
    return f"cpu/{current_platform.get_cpu_architecture().name}/{'amx' if amx else 'no-amx'}/{tokens}"


def _hash_seed(vllm_config: VllmConfig) -> str:
    """What starts the chain of block hashes: equal for engines whose equal prompts have equal hashes."""
    seed = os.environ.get("PYTHONHASHSEED")
    if seed is not None:
        return f"PYTHONHASHSEED={seed}"
    algorithm = str(vllm_config.cache_config.prefix_caching_hash_algo)
    return f"random of {_engine_id(vllm_config)}" if algorithm.startswith("xxhash") else "default"


def _engine_id(vllm_config: VllmConfig) -> str:
    transfer = vllm_config.kv_transfer_config
    return str(transfer.engine_id) if transfer is not None else ""


def _drafter(vllm_config: VllmConfig) -> str:
    """The draft model, whose layers are part of the KV cache."""
    speculative = vllm_config.speculative_config
    if speculative is None:
        return ""
    return f"{speculative.method} {speculative.model or ''}".strip()
