"""How fast a replica that was away is brought up to date."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path

from load import fill
from servers import LOCKSTEP, Medium, Server, Target, lockstep, node_pid
from system import BenchError, wait_for

EVICT_S = 30
RESYNC_S = 300


def _replica(demo_dir: Path, node: str) -> dict | None:
    """What node1 says of the replica on `node`, with the resource's in_sync set."""
    done = subprocess.run(
        [str(LOCKSTEP), "status", "--json", "--socket", str(demo_dir / "node1" / "api.sock")],
        capture_output=True, text=True, check=False, timeout=30,
    )
    if done.returncode != 0:
        return None
    resource = next(r for r in json.loads(done.stdout)["resources"] if r["name"] == "r0")
    replicas = resource["volumes"][0]["replicas"]
    replica = next((r for r in replicas if r["node"] == node), {})
    return {**replica, "in_sync": node in resource["in_sync"]}


def measure(directory: Path, medium: Medium, size_bytes: int) -> float:
    """Kills the secondary, rewrites the whole device, starts the secondary again. MB/s of the
    time from its start until it is in sync."""
    with contextlib.ExitStack() as stack:
        target: Target = lockstep(2)(stack, directory, medium, size_bytes)
        assert target.demo_dir is not None
        demo_dir = target.demo_dir
        fill(target, size_bytes, seed=1)
        os.kill(node_pid(demo_dir, 2), signal.SIGKILL)
        wait_for("eviction of the killed secondary",
                 lambda: (r := _replica(demo_dir, "node2")) and not r["in_sync"], EVICT_S)
        fill(target, size_bytes, seed=2)  # other bytes, so that no checksum matches
        started = time.monotonic()
        node = Server(
            [str(LOCKSTEP), "daemon", "--config", str(demo_dir / "node2" / "lockstep.toml")],
            directory / "restarted.log",
        )
        stack.callback(node.stop)
        wait_for("the returned secondary to be in sync",
                 lambda: (r := _replica(demo_dir, "node2")) and r["in_sync"]
                 and r["disk_state"] == "UpToDate", RESYNC_S)
        seconds = time.monotonic() - started
        if seconds <= 0:
            raise BenchError("the resync took no time")
        return size_bytes / 1e6 / seconds
