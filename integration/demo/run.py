"""The course of the demo: start the components, play the workload without and with the pool, compare."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import aiohttp

from demo import components, metrics, model, report
from demo.components import BLOCK_TOKENS, HOST, Engine
from demo.outage import Outage, OutageResult
from demo.processes import Component, Processes, free_port
from demo.progress import Progress, bar
from demo.replay import Outcome, Replay, warm_up
from demo.traffic import Conversation, Scale, generate

ENGINE_START_S = 600.0  # three engines import vLLM at once, on perhaps one core
SERVICE_START_S = 30.0
WATCH_EVERY_S = 0.5
DEATH_SEEN_AFTER = 6  # looks, WATCH_EVERY_S apart

T = TypeVar("T")


class DemoFailed(Exception):
    """The demo cannot go on; the message says why."""


@dataclass(frozen=True)
class Options:
    seed: int
    conversations: int
    kill_meta: bool
    reuse_baseline: bool
    state: Path


class Demo:
    def __init__(self, options: Options, progress: Progress) -> None:
        self._options = options
        self._progress = progress
        self._model = options.state / "model"
        self._results = options.state / "results"
        self._workload = generate(options.seed, Scale(conversations=options.conversations))
        self._meta_port = free_port()
        self._prefill = Engine("prefill", free_port())
        self._decode = Engine("decode", free_port())
        self._baseline = Engine("baseline", free_port())
        self._proxy_port = free_port()

    async def run(self) -> bool:
        """True when every claim of the table holds."""
        self._results.mkdir(parents=True, exist_ok=True)
        if model.ensure_model(self._model):
            self._progress.say(f"tiny random model written to {self._model}")
        with Processes(self._options.state / "logs") as processes:
            try:
                return await self._play(processes)
            except (aiohttp.ClientError, TimeoutError) as error:
                await _find_the_dead(processes)
                raise DemoFailed(f"{type(error).__name__}: {error}; the logs are in {self._options.state}") from error

    async def _play(self, processes: Processes) -> bool:
        without = self._stored_baseline() if self._options.reuse_baseline else None
        await self._start_pool(processes)
        await self._start_engines(processes, with_baseline=without is None)
        if without is None:
            without = await self._watched(processes, self._replay(self._baseline.url, "without a pool"))
            processes.stop(self._baseline.name)
            self._store_baseline(without)
        failed = [it for it in without if it.error is not None]
        if failed:
            raise DemoFailed(f"{len(failed)} requests failed without a pool, the first with: {failed[0].error}")
        return await self._watched(processes, self._with_pool(processes, without))

    async def _with_pool(self, processes: Processes, without: list[Outcome]) -> bool:
        outage = self._outage(processes) if self._options.kill_meta else None
        engines = (self._prefill, self._decode)
        before = [await metrics.read(engine.url) for engine in engines]
        started = time.monotonic()
        outcomes = await self._replay(f"http://{HOST}:{self._proxy_port}", "with the pool", without, outage)
        after = [await metrics.read(engine.url) for engine in engines]
        self._progress.say("done")
        prefill, decode = (late.since(early) for late, early in zip(after, before, strict=True))
        result = report.evaluate(outcomes, without, prefill, decode, BLOCK_TOKENS)
        wrong = result.shortcomings(exact_hits=outage is None)
        print(f"\n{report.table(result)}")
        if outage is not None:
            what = await outage.result(outcomes, started, after[1])
            wrong += what.shortcomings()
            print(_outage_lines(what))
        self._store("with-pool.json", [it.to_json() for it in outcomes])
        self._store("summary.json", result.to_json())
        for line in wrong:
            print(f"NOT AS EXPECTED: {line}")
        if failures := [it.error for it in outcomes if it.error is not None]:
            print(f"the first failure: {failures[0]}")
        print(f"\neverything of this run is in {self._options.state}", flush=True)
        return not wrong

    async def _start_pool(self, processes: Processes) -> None:
        await self._start_meta(processes)
        lend = components.donor_bytes(self._options.conversations)
        for number in range(components.DONORS):
            name = f"local-{number}"
            processes.start(name, components.local_command(self._meta_port, name, lend), components.environment())
        self._progress.say(f"pool: one MetaService, {components.DONORS} LocalServices that lend {lend} each")

    async def _start_meta(self, processes: Processes) -> None:
        meta = processes.start("meta", components.meta_command(self._meta_port), components.environment())
        await _until(lambda: _listens(self._meta_port), SERVICE_START_S, processes, meta)

    async def _start_engines(self, processes: Processes, with_baseline: bool) -> None:
        environment = components.engine_environment()
        transfer = components.transfer_config
        plan: list[tuple[Engine, dict[str, object] | None]] = [
            (self._prefill, transfer("kv_producer", self._meta_port)),
            (self._decode, transfer("kv_both", self._meta_port)),
        ]
        if with_baseline:
            plan.append((self._baseline, None))
        running = {
            engine: processes.start(engine.name, components.engine_command(engine, self._model, connector), environment)
            for engine, connector in plan
        }
        waiting = [engine.name for engine in running]
        self._progress.say(f"vllm serve: {', '.join(waiting)} (each imports vLLM, about half a minute of CPU time)")
        for engine, component in running.items():
            await _until(
                lambda engine=engine: self._healthy(engine.url, waiting),  # type: ignore[misc]
                ENGINE_START_S,
                processes,
                component,
            )
            waiting.remove(engine.name)
        proxy = processes.start(
            "proxy", components.proxy_command(self._proxy_port, self._prefill, self._decode), components.environment()
        )
        await _until(lambda: _listens(self._proxy_port), SERVICE_START_S, processes, proxy)
        await warm_up(*(engine.url for engine in running))
        self._progress.say("engines and proxy are ready")

    async def _healthy(self, url: str, waiting: list[str]) -> bool:
        self._progress.show(f"waiting for {', '.join(waiting)}")
        try:
            timeout = aiohttp.ClientTimeout(total=5.0)
            async with aiohttp.ClientSession(timeout=timeout) as session, session.get(f"{url}/health") as answer:
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def _replay(
        self, url: str, what: str, without: list[Outcome] | None = None, outage: Outage | None = None
    ) -> list[Outcome]:
        def on_progress(done: int, total: int) -> None:
            self._progress.show(f"replay {what}  {bar(done, total)}")
            if outage is not None:
                outage.progress(done, total)

        answers = None if without is None else {(it.conversation, it.turn): it.answer for it in without}
        requests = sum(len(conversation.turns) for conversation in self._workload)
        self._progress.say(
            f"replay {what}: {requests} requests in {len(self._workload)} conversations, a minute or two"
        )
        return await Replay(url, self._workload, answers, on_progress).run()

    async def _watched(self, processes: Processes, work: Coroutine[Any, Any, T]) -> T:
        """Do the work, unless a component dies meanwhile."""
        task = asyncio.ensure_future(work)
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=WATCH_EVERY_S)
                processes.check()
            return task.result()
        finally:
            task.cancel()

    def _outage(self, processes: Processes) -> Outage:
        return Outage(
            kill=lambda: processes.kill("meta"),
            restart=lambda: self._start_meta(processes),
            decode_url=self._decode.url,
            say=self._progress.say,
        )

    def _baseline_key(self) -> str:
        """Changes with anything that the answers without a pool depend on."""
        command = components.engine_command(Engine("baseline", 0), Path("model"), None)
        parts = [repr(command), (self._model / "made_from.json").read_text(), _workload_json(self._workload)]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def _store_baseline(self, outcomes: list[Outcome]) -> None:
        self._store("baseline.json", {"key": self._baseline_key(), "outcomes": [it.to_json() for it in outcomes]})

    def _stored_baseline(self) -> list[Outcome] | None:
        path = self._results / "baseline.json"
        if not path.is_file():
            return None
        stored = json.loads(path.read_text())
        if stored["key"] != self._baseline_key():
            return None
        self._progress.say("the answers without a pool are those of an earlier run (--reuse-baseline)")
        return [Outcome(**it) for it in stored["outcomes"]]

    def _store(self, name: str, content: object) -> None:
        (self._results / name).write_text(json.dumps(content, indent=1))


def _workload_json(workload: list[Conversation]) -> str:
    return json.dumps([asdict(conversation) for conversation in workload])


def _outage_lines(what: OutageResult) -> str:
    lines = (
        report.row("MetaService killed and restarted"),
        report.row("  requests answered while it was away", f"{what.answered_meanwhile:,}"),
        report.row("  tokens loaded from the pool after", f"{what.pool_tokens_after:,}"),
    )
    return "\n".join(["", *lines])


async def _find_the_dead(processes: Processes) -> None:
    """A broken connection is best explained by the component that died; its end may be seen a moment later."""
    for _ in range(DEATH_SEEN_AFTER):
        processes.check()
        await asyncio.sleep(WATCH_EVERY_S)


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(HOST, port)
    except OSError:
        return False
    writer.close()
    return True


async def _until(
    ready: Callable[[], Awaitable[bool]], limit_s: float, processes: Processes, component: Component
) -> None:
    """Wait until something is ready; ComponentFailed when any component dies or the time is over."""
    deadline = time.monotonic() + limit_s
    while not await ready():
        processes.check()
        if time.monotonic() > deadline:
            raise component.failure(f"was not ready after {limit_s:.0f} s")
        await asyncio.sleep(WATCH_EVERY_S)
