"""The bad day of the demo: the MetaService is killed in the middle of the replay and started again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from demo import metrics
from demo.metrics import PromptTokens
from demo.replay import Outcome

AWAY_S = 4.0
# Donors join again with their next heartbeat (1 s) and tell what they hold: what was put before is there again, and
# loads are counted from here on. New blocks are taken when the memory has rested.
JOIN_AGAIN_S = 2.0


@dataclass(frozen=True)
class OutageResult:
    """What happened while the service was away, and after."""

    answered_meanwhile: int
    pool_tokens_after: int

    def shortcomings(self) -> list[str]:
        wrong: list[str] = []
        if self.answered_meanwhile == 0:
            wrong.append("no request was under way while the MetaService was down, so nothing was shown")
        if self.pool_tokens_after == 0:
            wrong.append("nothing was loaded from the pool after the MetaService came back: what it held is lost")
        return wrong


class Outage:
    """Kills and restarts once, when `progress` says that half of the replay is done."""

    def __init__(
        self,
        kill: Callable[[], None],
        restart: Callable[[], Awaitable[None]],
        decode_url: str,
        say: Callable[[str], None],
    ) -> None:
        self._kill = kill
        self._restart = restart
        self._decode_url = decode_url
        self._say = say
        self._task: asyncio.Task[None] | None = None
        self._away: tuple[float, float] = (0.0, 0.0)
        self._tokens_at_return: PromptTokens | None = None

    def progress(self, done: int, total: int) -> None:
        if self._task is None and done >= total // 2:
            self._task = asyncio.get_running_loop().create_task(self._happen())

    async def _happen(self) -> None:
        self._kill()
        down = time.monotonic()
        self._say("MetaService killed (SIGKILL); the replay goes on")
        await asyncio.sleep(AWAY_S)
        await self._restart()
        self._away = (down, time.monotonic())
        self._say("MetaService started again, with empty memory; the nodes tell it what they hold")
        await asyncio.sleep(JOIN_AGAIN_S)
        self._tokens_at_return = await metrics.read(self._decode_url)

    async def result(self, outcomes: Sequence[Outcome], replay_started: float, at_end: PromptTokens) -> OutageResult:
        """Call when the replay has ended; `at_end` are the decode engine's counters then."""
        if self._task is not None:
            await self._task
        before = self._tokens_at_return or at_end
        down, up = (moment - replay_started for moment in self._away)
        answered = sum(it.error is None and it.sent_s < up and it.done_s > down for it in outcomes)
        return OutageResult(answered, at_end.since(before).pool)
