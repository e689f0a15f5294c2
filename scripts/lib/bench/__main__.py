"""Entry of scripts/bench: the comparison table, or with `failover` how long a fail-over takes."""

from __future__ import annotations

import argparse
import signal
import sys

import comparison
import failover
from system import BenchError


def _interrupted(number, _frame):
    sys.exit(128 + number)  # unwinds, so that servers are stopped and directories removed


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Compares Lockstep with a raw file, nbdkit, qemu-nbd and qemu's synchronous "
        "mirrors, and prints one table.",
        epilog="docs/benchmarks.md says how the figures come about.",
    )
    work = failover if sys.argv[1:2] == ["failover"] else comparison
    if work is failover:
        sys.argv.pop(1)
        parser.prog += " failover"
        parser.description = "Kills the primary again and again under a client on another node."
    work.add_arguments(parser)
    signal.signal(signal.SIGTERM, _interrupted)
    signal.signal(signal.SIGINT, _interrupted)
    options = parser.parse_args()
    try:
        return work.run(options)
    except BenchError as error:
        print(f"scripts/bench: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
