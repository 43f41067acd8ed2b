"""Lends memory to NIXL peers until its input ends: `python -m peers.nixl_owner BYTES`."""

from __future__ import annotations

import base64
import sys

import numpy as np

from .nixl_peer import agent


def main() -> None:
    """Registers memory, tells where it is, waits."""
    owner = agent("owner")
    memory = np.full(int(sys.argv[1]), 1, np.uint8)
    owner.register_memory([(memory.ctypes.data, memory.nbytes, 0, "")], "DRAM")
    print("lending", memory.ctypes.data, base64.b64encode(owner.get_agent_metadata()).decode(), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
