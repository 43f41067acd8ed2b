"""Runs a MetaService until SIGTERM or SIGINT. The same code as the ``memcache-meta`` binary built by cargo."""

from __future__ import annotations

import sys

from memcache import _core


def main() -> int:
    """Runs the program with the arguments of this process; its exit code."""
    return _core.run_meta(["memcache-meta", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
