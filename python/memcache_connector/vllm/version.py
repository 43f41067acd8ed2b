"""Which versions of vLLM this connector works with."""

from __future__ import annotations

import re

OLDEST = (0, 30)
NEWEST_TESTED = (0, 32)


class UnsupportedVllm(RuntimeError):
    """The installed vLLM is older than the connector interface this package implements."""


def parse(version: str) -> tuple[int, int] | None:
    """Major and minor number of a version text, or None for a build that has none (``0.1.dev...``, ``dev``)."""
    match = re.match(r"(\d+)\.(\d+)", version)
    if match is None or re.match(r"0\.\d+\.dev", version):
        return None
    return int(match[1]), int(match[2])


def check(version: str) -> str | None:
    """A remark worth one log line, or None when ``version`` is one this package was tested with.

    Raises :class:`UnsupportedVllm` for a version older than 0.30.
    """
    numbers = parse(version)
    tested = ".".join(map(str, NEWEST_TESTED))
    if numbers is None:
        return f"vLLM {version!r} has no release number; MemCacheConnector was tested with vLLM {tested}"
    if numbers < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise UnsupportedVllm(
            f"MemCacheConnector needs vLLM {oldest} or newer, this is {version}: its KV connector interface and "
            f"KV-cache layout differ. Upgrade vLLM, or run without --kv-transfer-config"
        )
    if numbers > NEWEST_TESTED:
        return f"vLLM {version} is newer than {tested}, the newest version MemCacheConnector was tested with"
    return None
