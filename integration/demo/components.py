"""The commands and settings of every component that the demo runs."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from demo import model

HOST = "127.0.0.1"
BLOCK_TOKENS = 32
# The engine's own cache: room for about two of the longest prompts. A small one stands for a busy engine, which has
# forgotten a conversation when its next turn comes; in the trace, millions of tokens pass between two turns.
ENGINE_BLOCKS = 128
SEQUENCES_MAX = 4
DONORS = 2
# Twice what the workload's blocks take up, so that the pool, like the best possible cache, forgets nothing.
DONOR_MEGABYTES_MIN = 256
DONOR_MEGABYTES_PER_CONVERSATION = 3

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Engine:
    """One `vllm serve`."""

    name: str
    port: int

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"


def environment(**extra: str) -> dict[str, str]:
    """The caller's environment without what would change the outcome."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MEMCACHE_", "VLLM_"))}
    kept["PYTHONUNBUFFERED"] = "1"
    kept["PYTHONPATH"] = str(ROOT / "integration")
    kept.pop("PYTHONHASHSEED", None)  # block hashes depend on it, and all engines must agree
    return kept | extra


def engine_environment() -> dict[str, str]:
    return environment(
        VLLM_CPU_KVCACHE_SPACE="1",
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_NO_USAGE_STATS="1",
        HF_HUB_OFFLINE="1",
        OMP_NUM_THREADS=str(max(1, (os.cpu_count() or 2) // 2)),
    )


def engine_command(engine: Engine, model_folder: Path, transfer: dict[str, object] | None) -> list[str]:
    """`vllm serve` for the tiny model; `transfer` is the value of --kv-transfer-config, None for an engine alone.

    float32 keeps rounding so small that the same tokens win whatever else is in the batch.
    """
    command = [
        *(str(Path(sys.executable).parent / "vllm"), "serve", str(model_folder)),
        *("--served-model-name", "tiny", "--host", HOST, "--port", str(engine.port)),
        *("--dtype", "float32", "--max-model-len", str(model.MAX_LENGTH), "--block-size", str(BLOCK_TOKENS)),
        *("--num-gpu-blocks-override", str(ENGINE_BLOCKS), "--max-num-seqs", str(SEQUENCES_MAX)),
        *("--enforce-eager", "--distributed-executor-backend", "uni", "--enable-prompt-tokens-details"),
    ]
    if transfer is not None:
        command += ["--kv-transfer-config", json.dumps(transfer)]
    return command


def meta_command(port: int) -> list[str]:
    # After a restart, memory lent before rests for the longer of the two times: a writer of the earlier life may still
    # write to it. The default, 20 s, is long on the demo's fast clock.
    settings = (f"listen={HOST}:{port}", "reservation_ttl_ms=5000", "lease_ms=5000")
    return [sys.executable, "-m", "memcache.meta", *(word for setting in settings for word in ("--set", setting))]


def donor_bytes(conversations: int) -> str:
    """How much each LocalService lends for a workload of that size."""
    return f"{max(DONOR_MEGABYTES_MIN, DONOR_MEGABYTES_PER_CONVERSATION * conversations)}MB"


def local_command(meta_port: int, name: str, lend_bytes: str) -> list[str]:
    settings = (f"meta_address={HOST}:{meta_port}", f"lend_bytes={lend_bytes}", f"node_name={name}")
    return [sys.executable, "-m", "memcache.local", *(word for setting in settings for word in ("--set", setting))]


def transfer_config(role: str, meta_port: int) -> dict[str, object]:
    """The connector of an engine: `role` is what vLLM calls kv_role."""
    return {
        "kv_connector": "MemCacheConnector",
        "kv_role": role,
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {
            "meta_address": f"{HOST}:{meta_port}",
            "lend_bytes": 0,  # the pool is the LocalServices' memory and outlives the engines
            "max_pinned_blocks": ENGINE_BLOCKS,  # a prompt may take half of this small cache, and all of it is saved
        },
    }


def proxy_command(port: int, prefill: Engine, decode: Engine) -> list[str]:
    return [
        *(sys.executable, "-m", "demo.proxy", "--host", HOST, "--port", str(port)),
        *("--prefill", prefill.url, "--decode", decode.url),
    ]
