"""How much memory an engine lends to the pool when nobody says."""

from __future__ import annotations

import os

MIB = 1024 * 1024
LEND_MOST = 4 * 1024 * MIB
LEND_LEAST = 64 * MIB
LEND_SHARE = 8


def available_memory() -> int:
    """Bytes of memory that new allocations of this host can get, as the kernel estimates them."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return LEND_LEAST * LEND_SHARE


def automatic_lend(ranks: int, available: int | None = None) -> int:
    """Bytes each of ``ranks`` processes of one host lends: together an eighth of the available memory, at most
    4 GiB; each at least 64 MiB. A multiple of 1 MiB.
    """
    total = min(LEND_MOST, (available_memory() if available is None else available) // LEND_SHARE)
    return max(LEND_LEAST, total // max(ranks, 1) // MIB * MIB)
