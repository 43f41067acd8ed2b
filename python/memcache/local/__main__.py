"""Lends memory to a pool until SIGTERM, SIGINT or a drain, so that what engines put there outlives them."""

from __future__ import annotations

import argparse
import signal
import sys
import threading

from memcache import _core
from memcache.config import as_overrides
from memcache.errors import MemCacheError
from memcache.services import LocalService

DRAINED_PERIOD_S = 0.2
"""How often a node looks whether somebody has had it emptied: it ends then."""

JOIN_REPORT_S = 5.0
"""After this long without having joined, say once what is being waited for."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the program; its exit code: 0 after a signal or a drain, 2 for bad settings, 1 for anything else."""
    parser = argparse.ArgumentParser(prog="memcache-local", description="Lend host memory to a MemCache pool.")
    parser.add_argument("--config", metavar="FILE", help="TOML file, see conf/local.toml")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], dest="settings", help="override one setting"
    )
    options = parser.parse_args(arguments)
    overrides: dict[str, str] = {}
    for setting in options.settings:
        key, separator, value = setting.partition("=")
        if not separator:
            parser.error(f"--set {setting}: want KEY=VALUE")
        overrides[key] = value
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        _core.log_local(options.config, as_overrides(overrides))
        service = LocalService(options.config, **overrides).start()
    except MemCacheError as error:
        print(f"memcache-local: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    print(f"memcache-local: lending as node {service.node_id} to {service.meta_address}", flush=True)
    _wait(service, stop)
    if stop.is_set() and service.drain_ms > 0:
        drained = service.drain(service.drain_ms)
        print(f"memcache-local: {'drained' if drained else 'not drained in time'}", flush=True)
    service.stop()
    return 0


def _wait(service: LocalService, stop: threading.Event) -> None:
    """Waits for a signal, saying once when the pool has accepted the memory."""
    waited, step = 0.0, 0.1
    while not service.wait_joined(0):
        if stop.wait(step):
            return
        waited += step
        if waited >= JOIN_REPORT_S > waited - step:
            where = service.meta_address
            print(
                f"memcache-local: has not joined the pool of the MetaService at {where} yet",
                file=sys.stderr,
                flush=True,
            )
    print("memcache-local: joined", flush=True)
    while not stop.wait(DRAINED_PERIOD_S):
        if service.wait_drained(0):
            print("memcache-local: drained", flush=True)
            return


if __name__ == "__main__":
    sys.exit(main())
