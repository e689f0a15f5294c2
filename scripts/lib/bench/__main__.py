"""Entry of scripts/bench: without a sub-command, the comparison table."""

from __future__ import annotations

import argparse
import signal
import sys

import comparison
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
    comparison.add_arguments(parser)
    signal.signal(signal.SIGTERM, _interrupted)
    signal.signal(signal.SIGINT, _interrupted)
    options = parser.parse_args()
    try:
        return comparison.run(options)
    except BenchError as error:
        print(f"scripts/bench: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
