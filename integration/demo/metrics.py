"""The counters of an engine that say where its prompt tokens came from."""

from __future__ import annotations

import re
from dataclasses import dataclass

import aiohttp

SAMPLE = re.compile(r"^(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>[^}]*)\})?\s+(?P<value>\S+)")
SOURCE = re.compile(r'source="([^"]*)"')
TIMEOUT_S = 10.0


@dataclass(frozen=True)
class PromptTokens:
    """Prompt tokens of one engine by where their KV came from, since it started."""

    computed: int = 0
    engine_cache: int = 0
    pool: int = 0

    @property
    def total(self) -> int:
        return self.computed + self.engine_cache + self.pool

    def since(self, earlier: PromptTokens) -> PromptTokens:
        return PromptTokens(
            self.computed - earlier.computed, self.engine_cache - earlier.engine_cache, self.pool - earlier.pool
        )


def parse(text: str) -> PromptTokens:
    """Read the counters from a metrics page; a source that it does not mention counts 0."""
    by_source: dict[str, float] = {}
    for line in text.splitlines():
        sample = SAMPLE.match(line)
        if sample is None or sample["name"] != "vllm:prompt_tokens_by_source_total":
            continue
        if source := SOURCE.search(sample["labels"] or ""):
            by_source[source[1]] = by_source.get(source[1], 0.0) + float(sample["value"])
    return PromptTokens(
        computed=round(by_source.get("local_compute", 0.0)),
        engine_cache=round(by_source.get("local_cache_hit", 0.0)),
        pool=round(by_source.get("external_kv_transfer", 0.0)),
    )


async def read(url: str) -> PromptTokens:
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout) as session, session.get(f"{url}/metrics") as response:
        response.raise_for_status()
        return parse(await response.text())
