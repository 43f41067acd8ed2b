"""usage: python -m demo [--seed N] [--conversations N] [--kill-meta] [--reuse-baseline] [--state FOLDER]

Two `vllm serve` (one prefills, one decodes) with a MemCache pool between them answer a multi-turn chat workload; a
third one without any connector answers the same, to compare with. Everything it writes is in one folder, `.demo`.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import json
import logging
import signal
import sys
from pathlib import Path
from typing import TextIO

from demo.components import ROOT
from demo.processes import ComponentFailed
from demo.progress import Progress
from demo.run import Demo, DemoFailed, Options


def parse() -> Options:
    parser = argparse.ArgumentParser(prog="python -m demo", description="Two vLLM engines share KV through MemCache.")
    parser.add_argument("--seed", type=int, default=1, help="of the workload (default 1)")
    parser.add_argument("--conversations", type=int, default=80, help="how many to play (default 80)")
    parser.add_argument("--kill-meta", action="store_true", help="kill -9 the MetaService half way, and restart it")
    parser.add_argument(
        "--reuse-baseline", action="store_true", help="take the answers without a pool from an earlier run if it fits"
    )
    parser.add_argument("--state", type=Path, default=ROOT / ".demo", help="folder for model, logs and results")
    given = parser.parse_args()
    return Options(given.seed, given.conversations, given.kill_meta, given.reuse_baseline, given.state)


def lock(state: Path) -> TextIO:
    """Only one demo may use a state folder at a time."""
    state.mkdir(parents=True, exist_ok=True)
    handle = (state / "lock").open("w")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise DemoFailed(f"another demo is using {state}; give this one a folder of its own with --state") from None
    return handle


async def interruptible(demo: Demo) -> bool:
    """Run the demo; SIGTERM ends it as Ctrl-C does, with all components stopped."""
    task = asyncio.ensure_future(demo.run())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await task


def main() -> int:
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    options = parse()
    try:
        with lock(options.state):
            good = asyncio.run(interruptible(Demo(options, Progress())))
    except (ComponentFailed, DemoFailed) as error:
        print(f"\ndemo: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("\ndemo: interrupted; all components are stopped", file=sys.stderr)
        return 130
    except json.JSONDecodeError as error:
        print(f"\ndemo: an answer was not JSON: {error}", file=sys.stderr)
        return 1
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
