"""Lends memory to a Mooncake pool until its input ends: `python -m peers.mooncake_owner MASTER BYTES`."""

from __future__ import annotations

import sys

from .mooncake_peer import join


def main() -> None:
    """Joins, says so, waits."""
    from mooncake.store import MooncakeDistributedStore

    store = MooncakeDistributedStore()
    join(store, sys.argv[1], int(sys.argv[2]))
    print("lending", flush=True)
    sys.stdin.read()
    store.close()


if __name__ == "__main__":
    main()
