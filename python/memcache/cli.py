"""The command ``memcache``: looks at a pool."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from memcache.errors import ConfigError, MemCacheError
from memcache.store import Store

MIB = 1 << 20


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; its exit code: 0, 2 for bad settings, 1 if the pool cannot be reached."""
    parser = argparse.ArgumentParser(prog="memcache", description="Look at a MemCache pool.")
    commands = parser.add_subparsers(dest="command", required=True)
    status = commands.add_parser("status", help="nodes, objects and bytes of the pool")
    status.add_argument("--json", action="store_true", help="print JSON")
    status.add_argument("--meta-address", help="where the MetaService is (default: MEMCACHE_META_ADDRESS or the file)")
    status.add_argument("--timeout-ms", type=int, default=2000, help="longest wait, milliseconds")
    options = parser.parse_args(arguments)
    try:
        with Store(meta_address=options.meta_address, lend_bytes=0) as store:
            if store.embedded:
                raise ConfigError("no MetaService address: give --meta-address or set MEMCACHE_META_ADDRESS")
            found = store.status(options.timeout_ms)
    except MemCacheError as error:
        print(f"memcache: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    print(json.dumps(found, indent=2) if options.json else _table(found))
    return 0


def _table(status: dict[str, Any]) -> str:
    lines = [
        f"objects {status['objects']}   used {status['used_bytes'] / MIB:.1f} of "
        f"{status['capacity_bytes'] / MIB:.1f} MiB   evicted {status['evicted_objects']}   "
        f"up {status['uptime_ms'] / 1000:.0f} s",
        f"{'node':<18}{'name':<32}{'objects':>10}{'used MiB':>12}{'of MiB':>12}{'seen ms ago':>13}",
    ]
    lines += [
        f"{node['node']:<18}{node['name'][:31]:<32}{node['objects']:>10}{node['used_bytes'] / MIB:>12.1f}"
        f"{node['capacity_bytes'] / MIB:>12.1f}{node['heartbeat_age_ms']:>13}"
        for node in status["nodes"]
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
