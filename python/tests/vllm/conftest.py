"""Tests of the vLLM connector. They need a vLLM that runs on this machine and the built memcache package."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# One process per engine and a small KV cache: read by vLLM when it is imported.
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
# One thread that is not tied to a core: on a busy machine two that wait for each other take many times as long.
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("OMP_NUM_THREADS", "1")

try:
    import vllm  # noqa: F401

    MISSING = ""
except ImportError as error:
    MISSING = f"vLLM is not installed here ({error}): NONE of the vLLM connector tests run"

if MISSING:
    collect_ignore_glob = ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what lives in this folder."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.e2e if item.path.name == "test_disagg.py" else pytest.mark.vllm)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say loudly when all of this was skipped."""
    if MISSING:
        terminalreporter.section("vLLM connector tests SKIPPED", sep="!", red=True, bold=True)
        terminalreporter.line(MISSING)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of tiny models: "llama" (real weights), "mla" and "hybrid" (for dummy weights)."""
    from models import HYBRID, MLA, write_config, write_llama

    root = tmp_path_factory.mktemp("models")
    return {
        "llama": write_llama(root / "llama"),
        "mla": write_config(root / "mla", MLA),
        "hybrid": write_config(root / "hybrid", HYBRID),
    }


class Engine:
    """One in-process ``vllm.LLM`` with what the tests look at."""

    def __init__(self, model: Path, transfer: dict[str, Any] | None, **options: Any) -> None:
        from vllm import LLM
        from vllm.config import KVTransferConfig

        settings: dict[str, Any] = {
            "model": str(model),
            "dtype": "float32",  # In bfloat16 the batch a prompt is computed in now and then decides a token.
            "max_model_len": 1024,
            "block_size": 32,
            "enforce_eager": True,
            "max_num_seqs": 8,
            "num_gpu_blocks_override": 256,
            "distributed_executor_backend": "uni",
            "disable_log_stats": False,
        }
        config = None
        if transfer is not None:
            preset = {
                "kv_connector": "MemCacheConnector",
                "kv_connector_module_path": "memcache_connector.vllm",
                "kv_role": "kv_both",
                "kv_load_failure_policy": "recompute",
            }
            extra = {"lend_bytes": "64MB"} | transfer.get("kv_connector_extra_config", {})
            config = KVTransferConfig(**(preset | transfer | {"kv_connector_extra_config": extra}))
        self.llm = LLM(**(settings | options), kv_transfer_config=config)
        self.cached: list[int] = []

    def generate(self, *prompts: str | list[int], max_tokens: int = 16) -> list[list[int]]:
        """Greedy tokens of each prompt; ``cached`` then holds how many prompt tokens were not computed."""
        from vllm import SamplingParams

        inputs = [{"prompt_token_ids": prompt} if isinstance(prompt, list) else prompt for prompt in prompts]
        outputs = self.llm.generate(
            inputs, SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True), use_tqdm=False
        )
        self.cached = [output.num_cached_tokens for output in outputs]
        return [list(output.outputs[0].token_ids) for output in outputs]

    def metric(self, name: str) -> int:
        """A counter of vLLM, 0 when it was never touched."""
        return sum(int(metric.value) for metric in self.llm.get_metrics() if metric.name == f"vllm:{name}")

    def reset(self) -> bool:
        """Empty the engine's own prefix cache."""
        return bool(self.llm.reset_prefix_cache())

    @property
    def core(self) -> Any:
        """vLLM's engine core, in this process."""
        return self.llm.llm_engine.engine_core.engine_core

    def settle(self) -> None:
        """Step the engine until no save is under way, as a server does by itself."""
        deadline = time.monotonic() + 30
        while self.core.scheduler.has_requests():
            self.llm.llm_engine.step()  # As generate() does: what was counted is not lost.
            assert time.monotonic() < deadline, "the engine does not come to rest"

    def close(self) -> None:
        """Shut the engine down, so that the next one in this process starts afresh."""
        from vllm.distributed.kv_transfer import kv_transfer_state

        self.core.shutdown()
        kv_transfer_state.ensure_kv_transfer_shutdown()
        del self.llm
        gc.collect()


@pytest.fixture
def engine() -> Iterator[Callable[..., Engine]]:
    """Makes engines and closes them after the test."""
    made: list[Engine] = []

    def make(model: Path, transfer: dict[str, Any] | None = None, **options: Any) -> Engine:
        made.append(Engine(model, transfer, **options))
        return made[-1]

    yield make
    for one in made:
        if hasattr(one, "llm"):
            one.close()
