"""vLLM's real scheduler around our connector, and a store whose answers the test decides."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import memcache

BLOCK = 32


class Answer:
    """A completion that the test resolves."""

    def __init__(self) -> None:
        self.value: Any = None
        self.resolved = False
        self.cancelled = False

    def resolve(self, value: Any) -> None:
        self.value, self.resolved = value, True

    def cancel(self, timeout_ms: int | None = None) -> bool:
        self.cancelled = True
        return self.resolved

    def done(self) -> bool:
        return self.resolved

    def wait(self, timeout_ms: int | None = None) -> bool:
        return self.resolved

    def result(self, timeout_ms: int | None = None) -> Any:
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


@dataclass
class ScriptedStore:
    """Answers look-ups with ``answers`` in turn; an Answer object is handed out as it is, for later."""

    answers: list[Any] = field(default_factory=list)
    asked: list[Any] = field(default_factory=list)
    embedded: bool = False
    meta_address: str = "scripted"
    removed: int = 0
    closed: bool = False

    def _answer(self, keys: Any) -> Answer:
        self.asked.append(keys)
        value = self.answers.pop(0)
        if isinstance(value, Answer):
            return value
        answer = Answer()
        answer.resolve(value)
        return answer

    def match_prefix_async(self, keys: Any, timeout_ms: int | None = None) -> Answer:
        return self._answer(keys)

    def exist_async(self, keys: Any, timeout_ms: int | None = None) -> Answer:
        return self._answer(keys)

    def register_fingerprint(self, scope: str, fields: dict[str, str]) -> tuple[bytes, list[Any]]:
        return b"", []

    def remove_all(self) -> int:
        self.removed += 1
        return 0

    def close(self) -> None:
        self.closed = True


def full_attention(index: int, block: int = BLOCK) -> Any:
    """A KV-cache group of one full-attention layer."""
    import torch
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheGroupSpec

    spec = FullAttentionSpec(block_size=block, num_kv_heads=2, head_size=32, dtype=torch.bfloat16)
    return KVCacheGroupSpec([f"layer{index}"], spec)


def sliding_window(index: int, window: int, block: int = BLOCK) -> Any:
    """A KV-cache group of one sliding-window layer."""
    import torch
    from vllm.v1.kv_cache_interface import KVCacheGroupSpec, SlidingWindowSpec

    spec = SlidingWindowSpec(
        block_size=block, num_kv_heads=2, head_size=32, dtype=torch.bfloat16, sliding_window=window
    )
    return KVCacheGroupSpec([f"layer{index}"], spec)


class Harness:
    """One scheduler of vLLM with our connector; the workers are the test."""

    def __init__(
        self, model: Path, monkeypatch: Any, groups: list[Any] | None = None, role: str = "kv_both", **extra: Any
    ) -> None:
        from vllm.config import KVTransferConfig
        from vllm.engine.arg_utils import EngineArgs
        from vllm.utils.hashing import get_hash_fn_by_name
        from vllm.v1.core import kv_cache_utils
        from vllm.v1.core.kv_cache_utils import resolve_kv_cache_block_sizes
        from vllm.v1.core.sched.scheduler import Scheduler
        from vllm.v1.kv_cache_interface import KVCacheConfig
        from vllm.v1.structured_output import StructuredOutputManager

        self.store = ScriptedStore()
        monkeypatch.setattr(memcache, "Store", lambda config=None: self.store)
        transfer = KVTransferConfig(
            kv_connector="MemCacheConnector",
            kv_connector_module_path="memcache_connector.vllm",
            kv_role=role,
            kv_load_failure_policy="recompute",
            kv_connector_extra_config=extra,
        )
        config = EngineArgs(
            model=str(model),
            dtype="bfloat16",
            max_model_len=1024,
            block_size=BLOCK,
            enforce_eager=True,
            max_num_seqs=8,
            max_num_batched_tokens=1024,
            kv_transfer_config=transfer,
        ).create_engine_config()
        config.cache_config.num_gpu_blocks = 64
        config.cache_config.kv_cache_layout = "LBHNC"
        cache = KVCacheConfig(
            num_blocks=64, kv_cache_tensors=[], kv_cache_groups=groups or [full_attention(0)], kv_cache_layout="LBHNC"
        )
        block, hashed = resolve_kv_cache_block_sizes(cache, config)
        cache.hash_block_size = hashed
        self.config, self.cache = config, cache
        self.scheduler = Scheduler(
            vllm_config=config,
            kv_cache_config=cache,
            structured_output_manager=StructuredOutputManager(config),
            block_size=block,
            hash_block_size=hashed,
            log_stats=True,
        )
        function = get_hash_fn_by_name("sha256_cbor")
        kv_cache_utils.init_none_hash(function)
        self._hasher = kv_cache_utils.get_request_block_hasher(hashed, function)

    @property
    def connector(self) -> Any:
        return self.scheduler.connector

    @property
    def free_blocks(self) -> int:
        return int(self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks())

    def add(self, tokens: int, name: str = "r", max_tokens: int = 4, first: int = 3) -> Any:
        """A request with this many prompt tokens."""
        from vllm import SamplingParams
        from vllm.v1.request import Request

        request = Request(
            request_id=name,
            prompt_token_ids=[first + at % 200 for at in range(tokens)],
            sampling_params=SamplingParams(max_tokens=max_tokens, ignore_eos=True),
            pooling_params=None,
            block_hasher=self._hasher,
        )
        self.scheduler.add_request(request)
        return request

    def orders(self, output: Any) -> Any:
        return output.kv_connector_metadata

    def answer(self, output: Any, **connector_output: Any) -> dict[str, int]:
        """The workers' answer to a step: token 7 for every request whose prompt is computed.

        Returns what the connector counted since the last time.
        """
        from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput

        ids = list(output.num_scheduled_tokens)
        sampled = []
        for req_id in ids:
            request = self.scheduler.requests[req_id]
            sampled.append([7] if request.num_computed_tokens >= request.num_tokens else [])
        outputs = self.scheduler.update_from_output(
            output,
            ModelRunnerOutput(
                req_ids=ids,
                req_id_to_index={req_id: index for index, req_id in enumerate(ids)},
                sampled_token_ids=sampled,
                kv_connector_output=KVConnectorOutput(**connector_output) if connector_output else None,
            ),
        )
        stats = [one.scheduler_stats for one in outputs.values() if one.scheduler_stats is not None]
        return dict(stats[0].kv_connector_stats or {}) if stats else {}

    def saved(self, output: Any) -> dict[str, Any]:
        """A worker's report that the saves of this step are done."""
        from memcache_connector.vllm.metadata import MemCacheWorkerMetadata

        jobs = Counter(job.job_id for job in self.orders(output).saves)
        return {"kv_connector_worker_meta": MemCacheWorkerMetadata(finished_saves=jobs, pool_answered=bool(jobs))}


def unit_answer(units: int, columns: int = 1, pending: int = 0) -> tuple[int, int]:
    """What ``match_prefix_async`` says when this many units are present and ``pending`` more are being written."""
    return units * columns, (units + pending) * columns


def exist_answer(*columns: list[int]) -> Any:
    """What ``exist_async`` says: one list of states per column, one entry per unit."""
    return np.array(columns, dtype=np.uint8).T.reshape(-1)
