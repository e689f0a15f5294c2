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
from servers import Medium, Server, Target, lockstep, node_pid
from system import wait_for

EVICT_S = 30
RESYNC_S = 300


def _replica(binary: Path, demo_dir: Path, node: str) -> dict | None:
    """What node1 says of the replica on `node`, with the resource's in_sync set."""
    done = subprocess.run(
        [str(binary), "status", "--json", "--socket", str(demo_dir / "node1" / "api.sock")],
        capture_output=True, text=True, check=False, timeout=30,
    )
    if done.returncode != 0:
        return None
    resource = next(r for r in json.loads(done.stdout)["resources"] if r["name"] == "r0")
    replicas = resource["volumes"][0]["replicas"]
    replica = next((r for r in replicas if r["node"] == node), {})
    return {**replica, "in_sync": node in resource["in_sync"]}


def measure(binary: Path, directory: Path, medium: Medium, size_bytes: int) -> float:
    """Kills the secondary, rewrites the whole device, starts the secondary again. MB/s of the
    time from its start until it is in sync."""
    with contextlib.ExitStack() as stack:
        target: Target = lockstep(2, binary, witnesses=1)(stack, directory, medium, size_bytes)
        assert target.demo_dir is not None
        demo_dir = target.demo_dir
        fill(target, size_bytes, seed=1)

        def is_in_sync() -> bool | None:
            """Nothing when node1 does not answer."""
            replica = _replica(binary, demo_dir, "node2")
            return replica and replica["in_sync"] and replica["disk_state"] == "UpToDate"

        os.kill(node_pid(demo_dir, 2), signal.SIGKILL)
        wait_for("eviction of the killed secondary", lambda: is_in_sync() is False, EVICT_S)
        fill(target, size_bytes, seed=2)  # other bytes, so that no checksum matches
        started = time.monotonic()
        node = Server(
            [str(binary), "daemon", "--config", str(demo_dir / "node2" / "lockstep.toml")],
            directory / "restarted.log",
        )
        stack.callback(node.stop)
        wait_for("the returned secondary to be in sync", is_in_sync, RESYNC_S)
        return size_bytes / 1e6 / (time.monotonic() - started)
