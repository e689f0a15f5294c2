"""How long a client waits when the primary is killed, and whether anything is lost."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

from nbd import Client, NbdError
from servers import Server, build_lockstep, lockstep, node_pid
from system import BenchError, TemporaryDirectory, wait_for

BLOCK = 4096
BLOCKS = 1024
SETTLE_S = 60
NODES = 3


def add_arguments(parser) -> None:
    parser.add_argument("--kills", type=int, default=20, help="fail-overs (20)")
    parser.add_argument("--directory", type=Path, default=Path("/dev/shm"),
                        help="where the cluster lies (/dev/shm)")
    parser.add_argument("--lockstep", type=Path, metavar="BINARY",
                        help="measure this instead of building the tree")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all samples there")


def _stamp(block: int, sequence: int) -> bytes:
    return struct.pack(">QQ", block, sequence) * (BLOCK // 16)


class Writer(threading.Thread):
    """Writes stamped blocks one after the other and reads one back now and then. Opens the export
    anew where the server closes it; whatever was not answered then may or may not have happened."""

    def __init__(self, sockets):
        super().__init__(daemon=True)
        self.sockets = sockets  # exports to use now, the first that opens
        self.sent = [0] * BLOCKS
        self.acknowledged = [0] * BLOCKS
        self.seen = [0] * BLOCKS
        self.answered_at = time.monotonic()
        self.longest_s = 0.0
        self.errors = 0
        self.path: Path | None = None
        self.other: Path | None = None  # not the one that was wanted
        self.fault: str | None = None
        self.stopping = threading.Event()

    def run(self) -> None:
        step = 0
        while not self.stopping.is_set() and self.fault is None:
            client = self._open()
            if client is None:
                time.sleep(0.005)
                continue
            try:
                # Where it is to use another export now it goes there by itself.
                while not self.stopping.is_set() and self.path in (self.sockets()[0], self.other):
                    self._write(client, step * 7919 % BLOCKS)
                    if step % 4 == 0:
                        self._read(client, step * 104729 % BLOCKS)
                    step += 1
            except (OSError, NbdError):
                self.errors += 1
            finally:
                client.close()

    def _open(self) -> Client | None:
        first, *others = self.sockets()
        for path in (first, *others):
            with contextlib.suppress(OSError, NbdError):
                client = Client(path, "r0")
                self.path, self.other = path, path if path != first else None
                return client
        return None

    def _write(self, client: Client, block: int) -> None:
        self.sent[block] += 1
        sequence = self.sent[block]
        now = client.write(block * BLOCK, _stamp(block, sequence))
        self.acknowledged[block] = sequence
        self.longest_s = max(self.longest_s, now - self.answered_at)
        self.answered_at = now

    def _read(self, client: Client, block: int) -> None:
        self.check(block, client.read(block * BLOCK, BLOCK))

    def check(self, block: int, data: bytes) -> None:
        number, sequence = struct.unpack(">QQ", data[:16])
        if sequence == 0 and not any(data):
            number = block
        floor = max(self.acknowledged[block], self.seen[block])
        whole = not any(data) or data == _stamp(block, sequence)
        if number != block or not whole or sequence < floor or sequence > self.sent[block]:
            self.fault = (
                f"block {block}: write {sequence} is there, {self.acknowledged[block]} was "
                f"acknowledged, {self.seen[block]} was read, {self.sent[block]} was sent"
            )
        self.seen[block] = sequence


def _status(binary: Path, directory: Path, node: int) -> dict | None:
    done = subprocess.run(
        [str(binary), "status", "--json", "--socket", str(directory / f"node{node}" / "api.sock")],
        capture_output=True, text=True, check=False, timeout=30,
    )
    if done.returncode != 0:
        return None
    return next((r for r in json.loads(done.stdout)["resources"] if r["name"] == "r0"), None)


def run(options) -> int:
    if options.lockstep is None:
        build_lockstep()
    binary = options.lockstep or Path("target/release/lockstep")
    pauses: list[float] = []
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(TemporaryDirectory(options.directory))
        target = lockstep(NODES, binary)(stack, directory, None, 256 << 20)
        demo = target.demo_dir
        running = {node: node_pid(demo, node) for node in range(1, NODES + 1)}
        primary = 1
        # The export of a node that is not the primary, as a client on another machine would.
        follower = {"node": 2}

        def sockets() -> list[Path]:
            """The follower's first; with exclusive access only the primary's opens."""
            nodes = sorted(running, key=lambda node: node != follower["node"])
            return [demo / f"node{node}" / "nbd.sock" for node in nodes]

        writer = Writer(sockets)
        writer.start()
        stack.callback(writer.stopping.set)

        def settled() -> int | None:
            """The primary once every replica is in sync."""
            for node in running:
                found = _status(binary, demo, node)
                if found and found["primary"] and len(found["in_sync"]) == NODES:
                    return int(found["primary"].removeprefix("node"))
            return None

        for number in range(1, options.kills + 1):
            primary = wait_for("all replicas to be in sync", settled, SETTLE_S)
            follower["node"] = next(node for node in running if node != primary)
            time.sleep(0.5)
            before = writer.acknowledged[:]
            writer.longest_s = 0.0
            os.kill(running[primary], signal.SIGKILL)
            killed_at = time.monotonic()
            wait_for("I/O to go on", lambda: writer.fault or writer.answered_at > killed_at + 0.01,
                     SETTLE_S, 0.001)
            time.sleep(1.0)
            pauses.append(writer.longest_s)
            print(f"  {number}: node{primary} killed, {writer.longest_s * 1000:.0f} ms",
                  file=sys.stderr, flush=True)
            if writer.fault or sum(writer.acknowledged) <= sum(before):
                raise BenchError(writer.fault or "no write was answered after the kill")
            node = Server(
                [str(binary), "daemon", "--config",
                 str(demo / f"node{primary}" / "lockstep.toml")],
                directory / f"restarted-{number}.log",
            )
            stack.callback(node.stop)
            running[primary] = node.pid
        wait_for("all replicas to be in sync", settled, SETTLE_S)
        writer.stopping.set()
        writer.join(60)
        client = wait_for("the export to open", writer._open, SETTLE_S)
        for block in range(BLOCKS):
            writer.check(block, client.read(block * BLOCK, BLOCK))
        client.close()
        if writer.fault:
            raise BenchError(f"a write is lost: {writer.fault}")
    pauses.sort()
    p99 = pauses[min(len(pauses) - 1, int(len(pauses) * 0.99))]
    print(
        f"{len(pauses)} fail-overs (kill -9 of the primary, client on another node's export): "
        f"longest wait of a write p50 {statistics.median(pauses) * 1000:.0f} ms, "
        f"p99 {p99 * 1000:.0f} ms, max {pauses[-1] * 1000:.0f} ms; "
        f"{sum(writer.acknowledged)} writes acknowledged, none lost; "
        f"{writer.errors} errors seen by the client"
    )
    if options.json:
        options.json.write_text(json.dumps({"pauses_s": pauses, "errors": writer.errors}))
    return 0
