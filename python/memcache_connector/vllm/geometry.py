"""What the connector must know of an engine's KV cache, read once from vLLM's configuration.

Supported: any number of KV-cache groups of full attention (also MLA) and sliding-window attention, tensor, pipeline
and decode-context parallelism. Everything else (Mamba and other recurrent state, chunked local attention, attention
sinks, cross attention, prefill-context parallelism, groups that are no part of prefix caching) makes
:func:`read_geometry` raise :class:`UnsupportedModel`, and the engine then runs as without a pool.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from memcache_connector.common.keys import Slot

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig


class UnsupportedModel(Exception):
    """This engine's KV cannot be kept in a pool by this connector; the text says why."""


@dataclass(frozen=True)
class Group:
    """One KV-cache group: layers that share a block table."""

    index: int
    """Position in ``kv_cache_config.kv_cache_groups`` and in every block table."""

    block_tokens: int
    """Tokens of one block of the group."""

    hashes_per_block: int
    """Block hashes of the engine that one block covers; the last of them names the block."""

    window: int | None
    """For sliding-window attention: tokens before the next one that it still reads. None: reads all."""

    layers: tuple[str, ...]

    def first_needed_block(self, tokens: int) -> int:
        """First block that computing token number ``tokens`` reads."""
        if self.window is None:
            return 0
        return max(0, tokens - self.window) // self.block_tokens


@dataclass(frozen=True)
class Geometry:
    """The KV cache of one engine, as far as object keys and block arithmetic need it."""

    groups: tuple[Group, ...]
    unit_tokens: int
    """Hits end at multiples of this many tokens: the least common multiple of the groups' blocks."""

    hash_tokens: int
    """Tokens of one block hash."""

    num_blocks: int
    pipeline_ranks: int
    shards: int
    """Classes of tensor-parallel ranks with different KV."""

    drop_last_unit: bool
    """A draft model (EAGLE) needs the last unit of a hit recomputed."""

    @cached_property
    def windowed(self) -> bool:
        """Whether some group needs only the end of a prefix."""
        return any(group.window is not None for group in self.groups)

    @cached_property
    def block_level_errors(self) -> bool:
        """Whether vLLM can take single blocks that failed to load (one group), or whole requests only."""
        return len(self.groups) == 1

    def blocks_per_unit(self, group: Group) -> int:
        return self.unit_tokens // group.block_tokens

    def slots(self, group: Group) -> list[Slot]:
        """The objects that make one block of ``group`` complete: one of each pipeline rank and shard."""
        return [
            Slot(group.index, pipeline, shard)
            for pipeline in range(self.pipeline_ranks)
            for shard in range(self.shards)
        ]


@dataclass(frozen=True)
class RankPlace:
    """Where one worker stands among the ranks of its engine."""

    pipeline: int
    shard: int
    writes: bool
    """False for a rank whose KV another rank writes (replicas, as with MLA)."""


def read_geometry(vllm_config: VllmConfig, kv_cache_config: KVCacheConfig) -> Geometry:
    """The geometry of this engine. Raises :class:`UnsupportedModel`."""
    from vllm.v1.core.kv_cache_utils import resolve_kv_cache_block_sizes

    parallel = vllm_config.parallel_config
    if getattr(parallel, "prefill_context_parallel_size", 1) > 1:
        raise UnsupportedModel("prefill-context parallelism")
    if not kv_cache_config.kv_cache_groups:
        raise UnsupportedModel("the model has no KV cache")
    shared = set(kv_cache_config.prefix_cacheable_group_ids)
    unit_tokens, hash_tokens = resolve_kv_cache_block_sizes(kv_cache_config, vllm_config)
    hash_tokens = getattr(kv_cache_config, "hash_block_size", None) or hash_tokens
    groups = []
    for index, group in enumerate(kv_cache_config.kv_cache_groups):
        if index not in shared:
            raise UnsupportedModel(f"KV-cache group {index} ({_spec_name(group)}) takes no part in prefix caching")
        groups.append(_read_group(index, group, hash_tokens, parallel.decode_context_parallel_size))
    drop_last_unit = _drafter_drops_blocks(vllm_config)
    if drop_last_unit and any(group.window is not None for group in groups):
        raise UnsupportedModel("EAGLE drafting with sliding-window groups")
    return Geometry(
        groups=tuple(groups),
        unit_tokens=unit_tokens,
        hash_tokens=hash_tokens,
        num_blocks=kv_cache_config.num_blocks,
        pipeline_ranks=parallel.pipeline_parallel_size,
        shards=parallel.tensor_parallel_size // _replicas(kv_cache_config),
        drop_last_unit=drop_last_unit,
    )


def _replicas(kv_cache_config: KVCacheConfig) -> int:
    """Consecutive tensor-parallel ranks that hold the same bytes (vLLM tells since 0.31)."""
    return max(1, getattr(kv_cache_config, "kv_tp_replicas", 1))


def first_spec(group: Any) -> Any:
    """The spec of a group, or of its first layer where each layer has its own."""
    from vllm.v1.kv_cache_interface import UniformTypeKVCacheSpecs

    spec = group.kv_cache_spec
    return next(iter(spec.kv_cache_specs.values())) if isinstance(spec, UniformTypeKVCacheSpecs) else spec


def _spec_name(group: Any) -> str:
    return type(first_spec(group)).__name__


def _read_group(index: int, group: Any, hash_tokens: int, context_ranks: int) -> Group:
    from vllm.v1.core.kv_cache_utils import resolve_dcp_kv_cache_spec
    from vllm.v1.kv_cache_interface import (
        FullAttentionSpec,
        MLAAttentionSpec,
        SlidingWindowMLASpec,
        SlidingWindowSpec,
    )

    spec = first_spec(group)
    # Exact types: a subclass may keep its blocks by other rules.
    if type(spec) in (FullAttentionSpec, MLAAttentionSpec):
        window = None
    elif type(spec) in (SlidingWindowSpec, SlidingWindowMLASpec):
        window = spec.sliding_window - 1 + spec.extra_retained_tokens
    else:
        raise UnsupportedModel(f"KV-cache group {index} is {type(spec).__name__}")
    if getattr(group, "host_resident", False):
        raise UnsupportedModel(f"KV-cache group {index} lives in host memory")
    block_tokens = resolve_dcp_kv_cache_spec(spec, context_ranks).block_size
    if block_tokens % hash_tokens:
        raise UnsupportedModel(
            f"KV-cache group {index}: blocks of {block_tokens} tokens, block hashes of {hash_tokens}"
        )
    return Group(index, block_tokens, block_tokens // hash_tokens, window, tuple(group.layer_names))


def _drafter_drops_blocks(vllm_config: VllmConfig) -> bool:
    speculative = vllm_config.speculative_config
    return speculative is not None and bool(speculative.use_eagle_block_drop())


def read_place(vllm_config: VllmConfig, kv_cache_config: KVCacheConfig) -> RankPlace:
    """Where this worker stands."""
    parallel = vllm_config.parallel_config
    tensor_ranks = parallel.tensor_parallel_size
    tensor_rank = parallel.rank % tensor_ranks
    pipeline = parallel.rank // tensor_ranks % parallel.pipeline_parallel_size
    replicas = _replicas(kv_cache_config)
    return RankPlace(pipeline, tensor_rank // replicas, tensor_rank % replicas == 0)
