"""The logger of this package: below vLLM's own, so that its lines appear where vLLM's do."""

from __future__ import annotations

import logging

logger = logging.getLogger("vllm.memcache_connector")
