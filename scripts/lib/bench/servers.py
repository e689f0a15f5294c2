"""The rows: how each competitor is set up on a directory, and where fio finds it.

All rows use the same sizes and, where the program can, direct I/O on a disk and the page cache
(which is the store itself) on a RAM-backed file system. qemu's mirrors consist of a local file and
an NBD connection over a unix socket to a second qemu process, which is how two machines would be
mirrored; over TCP they suffer from Nagle's algorithm.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import certificates
from system import BenchError, Server, free_ports, wait_for

EXPORT = "bench"
QEMU_AIO = "io_uring"  # faster than "threads" on RAM-backed files too, 1.5 to 3 times
BUILT = Path("target/release/lockstep").absolute()
DEMO_START_S = 60
MIRROR_READY_S = 120


@dataclass
class Target:
    """Something that fio can load, and the processes that serve it."""

    dir: Path
    place: str
    is_file: bool = False
    server_pids: list[int] = field(default_factory=list)
    demo_dir: Path | None = None

    def fio_arguments(self) -> list[str]:
        if self.is_file:
            return ["--ioengine=io_uring", "--direct=1", f"--filename={self.place}"]
        return ["--ioengine=nbd", f"--uri={self.place}"]


@dataclass(frozen=True)
class Medium:
    """Where the backing files lie."""

    key: str
    parent: Path
    in_ram: bool

    @property
    def qemu_direct(self) -> str:
        return "off" if self.in_ram else "on"


Setup = Callable[[contextlib.ExitStack, Path, Medium, int], Target]


@dataclass(frozen=True)
class Row:
    """One row of the table."""

    key: str
    title: str
    setup: Setup

    @contextlib.contextmanager
    def running(self, directory: Path, medium: Medium, size_bytes: int) -> Iterator[Target]:
        """The row's servers, from ready to load until stopped."""
        with contextlib.ExitStack() as stack:
            yield self.setup(stack, directory, medium, size_bytes)


def _image(directory: Path, name: str, size_bytes: int) -> Path:
    path = directory / name
    with path.open("wb") as file:
        file.truncate(size_bytes)
    return path


def _start(stack: contextlib.ExitStack, command: list[str], log: Path, **options) -> Server:
    server = Server(command, log, **options)
    stack.callback(server.stop)
    return server


def _listens(path: Path) -> Callable[[], bool]:
    def answer() -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(path))
            except OSError:
                return False
        return True

    return answer


def _unix_uri(path: Path) -> str:
    return f"nbd+unix:///{EXPORT}?socket={path}"


def raw_file(_stack, directory: Path, _medium: Medium, size_bytes: int) -> Target:
    return Target(directory, str(_image(directory, "raw.img", size_bytes)), is_file=True)


def _encrypted(uri: str) -> str:
    """fio lets libnbd read no files that a URI names, so the server's certificate goes unchecked."""
    return f"nbds{uri.removeprefix('nbd')}&tls-verify-peer=false"


def nbdkit(stack, directory: Path, _medium: Medium, size_bytes: int, tls: bool = False) -> Target:
    image, path = _image(directory, "nbdkit.img", size_bytes), directory / "nbdkit.sock"
    pki = certificates.make(directory) if tls else None
    server = _start(
        stack,
        ["nbdkit", "--foreground", "--unix", str(path), "--exportname", EXPORT,
         *(["--tls=require", f"--tls-certificates={pki}"] if pki else []), "file", f"file={image}"],
        directory / "nbdkit.log",
    )
    server.wait_until(path.exists)
    uri = _unix_uri(path)
    return Target(directory, _encrypted(uri) if pki else uri, server_pids=[server.pid])


def nbdkit_tls(stack, directory: Path, medium: Medium, size_bytes: int) -> Target:
    return nbdkit(stack, directory, medium, size_bytes, tls=True)


def _qemu_nbd(stack, directory: Path, medium: Medium, size_bytes: int, name: str):
    image, path = _image(directory, f"{name}.img", size_bytes), directory / f"{name}.sock"
    cache = "none" if medium.qemu_direct == "on" else "writeback"
    server = _start(
        stack,
        ["qemu-nbd", "--persistent", "--shared=8", "--format=raw", f"--cache={cache}",
         f"--aio={QEMU_AIO}", "--discard=unmap", f"--socket={path}",
         f"--export-name={EXPORT}", str(image)],
        directory / f"{name}.log",
    )
    server.wait_until(_listens(path))
    return server, path


def qemu_nbd(stack, directory: Path, medium: Medium, size_bytes: int) -> Target:
    server, path = _qemu_nbd(stack, directory, medium, size_bytes, "qemu-nbd")
    return Target(directory, _unix_uri(path), server_pids=[server.pid])


def _blockdevs(image: Path, remote: Path, medium: Medium) -> list[str]:
    return [
        "--blockdev",
        f"driver=file,node-name=local,filename={image},aio={QEMU_AIO},"
        f"cache.direct={medium.qemu_direct},discard=unmap",
        "--blockdev",
        f"driver=nbd,node-name=remote,server.type=unix,server.path={remote},export={EXPORT},"
        "discard=unmap",
    ]


def _export(node: str, path: Path) -> list[str]:
    return [
        "--nbd-server", f"addr.type=unix,addr.path={path},max-connections=8",
        "--export", f"type=nbd,id=export,node-name={node},name={EXPORT},writable=on",
    ]


def qemu_quorum(stack, directory: Path, medium: Medium, size_bytes: int) -> Target:
    """Writes need both children (vote-threshold 2); reads are taken from the local one only."""
    second, remote = _qemu_nbd(stack, directory, medium, size_bytes, "quorum-remote")
    image, path = _image(directory, "quorum.img", size_bytes), directory / "quorum.sock"
    first = _start(
        stack,
        ["qemu-storage-daemon", *_blockdevs(image, remote, medium), "--blockdev",
         "driver=quorum,node-name=both,vote-threshold=2,read-pattern=fifo,"
         "children.0=local,children.1=remote", *_export("both", path)],
        directory / "quorum.log",
    )
    first.wait_until(_listens(path))
    return Target(directory, _unix_uri(path), server_pids=[first.pid, second.pid])


class Qmp:
    """As much of qemu's monitor protocol as starting a job takes."""

    def __init__(self, path: Path):
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(30)
        self._socket.connect(str(path))
        self._lines = self._socket.makefile("r")
        self._lines.readline()  # greeting
        self.command("qmp_capabilities")

    def command(self, name: str, **arguments):
        message = {"execute": name, "arguments": arguments}
        self._socket.sendall(json.dumps(message).encode() + b"\n")
        while True:
            answer = json.loads(self._lines.readline())
            if "error" in answer:
                raise BenchError(f"qemu refused {name}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]  # anything else is an event

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


def qemu_mirror(stack, directory: Path, medium: Medium, size_bytes: int) -> Target:
    """A mirror job that is READY and copies synchronously (copy-mode write-blocking)."""
    second, remote = _qemu_nbd(stack, directory, medium, size_bytes, "mirror-remote")
    image, path = _image(directory, "mirror.img", size_bytes), directory / "mirror.sock"
    monitor = directory / "mirror.qmp"
    first = _start(
        stack,
        ["qemu-storage-daemon", *_blockdevs(image, remote, medium), *_export("local", path),
         "--chardev", f"socket,id=monitor,path={monitor},server=on,wait=off",
         "--monitor", "chardev=monitor"],
        directory / "mirror.log",
    )
    first.wait_until(_listens(path))
    qmp = Qmp(monitor)
    stack.callback(qmp.close)
    qmp.command(
        "blockdev-mirror", **{"job-id": "mirror", "device": "local", "target": "remote",
                              "sync": "full", "copy-mode": "write-blocking"}
    )

    def ready() -> bool:
        jobs = qmp.command("query-block-jobs")
        if not jobs:
            raise BenchError("qemu's mirror job ended by itself")
        return jobs[0]["ready"] and jobs[0].get("actively-synced", True)

    wait_for("qemu's mirror job to be ready", ready, MIRROR_READY_S)
    return Target(directory, _unix_uri(path), server_pids=[first.pid, second.pid])


def lockstep(nodes: int, binary: Path, witnesses: int = 0, tls: bool = False) -> Setup:
    """A demo cluster whose --exec command hands out the URI and then waits to be released."""

    def setup(stack, directory: Path, _medium: Medium, size_bytes: int) -> Target:
        demo_dir = directory / f"lockstep-{nodes}"
        ready, release = directory / f"uri-{nodes}", directory / f"release-{nodes}"
        os.mkfifo(release)
        hold = (
            f'echo "$NBD_URI" > {shlex.quote(str(ready))}.new && '
            f"mv {shlex.quote(str(ready))}.new {shlex.quote(str(ready))} && "
            f"read -r done < {shlex.quote(str(release))}"
        )
        port = free_ports(nodes)
        demo = [str(binary), "demo", "--nodes", str(nodes), "--witnesses", str(witnesses),
                "--size", str(size_bytes), "--dir", str(demo_dir), "--port", str(port), "--exec"]
        server = _start(stack, [*demo, hold], directory / f"lockstep-{nodes}.log")

        def let_go() -> None:
            try:  # ends the --exec command, and with it the demo, in the regular way
                release_fd = os.open(release, os.O_WRONLY | os.O_NONBLOCK)
                os.write(release_fd, b"done\n")
                os.close(release_fd)
                server.process.wait(30)
            except (OSError, subprocess.TimeoutExpired):
                server.stop(signal.SIGINT)
            _stop_nodes(demo_dir, nodes)

        stack.callback(let_go)
        server.wait_until(ready.exists, DEMO_START_S)
        if tls:
            _restart_with_tls(stack, binary, demo_dir / "node1", certificates.make(directory))
        pids = [server.pid, *(node_pid(demo_dir, k) for k in range(1, nodes + 1))]
        # A unix socket, as for all other servers.
        uri = f"nbd+unix:///r0?socket={demo_dir}/node1/nbd.sock"
        uri = _encrypted(uri) if tls else uri
        return Target(directory, uri, server_pids=pids, demo_dir=demo_dir)

    return setup


def _restart_with_tls(stack, binary: Path, node: Path, pki: Path) -> None:
    """Its clients may use TLS from then on, and it is primary again."""
    config, pid = node / "lockstep.toml", int((node / "pid").read_text())
    with config.open("a") as text:
        text.write(f'\n[nbd_tls]\nmode = "on"\ncertificate = "{pki}/server-cert.pem"\n'
                   f'key = "{pki}/server-key.pem"\n')
    os.kill(pid, signal.SIGTERM)
    wait_for("the first node to stop", lambda: not Path(f"/proc/{pid}/fd/0").exists(), DEMO_START_S)
    daemon = _start(stack, [str(binary), "daemon", "--config", str(config)], node / "tls.log")
    daemon.wait_until(_listens(node / "api.sock"), DEMO_START_S)
    move = [str(binary), "--socket", str(node / "api.sock"), "move", "r0", "node1"]

    def moved() -> bool:
        return subprocess.run(move, capture_output=True, check=False).returncode == 0

    wait_for("the first node to be primary", moved, DEMO_START_S)


def node_pid(demo_dir: Path, node: int) -> int:
    return int((demo_dir / f"node{node}" / "pid").read_text())


def _stop_nodes(demo_dir: Path, nodes: int) -> None:
    """Nodes that outlive the demo that started them (it was killed, or the node restarted)."""
    for node in range(1, nodes + 1):
        with contextlib.suppress(OSError, ValueError):
            pid = node_pid(demo_dir, node)
            # The pid may belong to somebody else by now.
            if str(demo_dir) in Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " "):
                os.kill(pid, signal.SIGKILL)


def build_lockstep() -> None:
    """Builds the release binary, so that what is measured is what is in the tree."""
    built = subprocess.run(["cargo", "build", "--release", "--locked"], check=False)
    if built.returncode != 0:
        raise BenchError("cargo build --release failed")


OTHERS = [
    Row("raw", "raw file, fio io_uring", raw_file),
    Row("nbdkit", "nbdkit file (1 copy)", nbdkit),
    Row("nbdkit-tls", "nbdkit file, clients by TLS", nbdkit_tls),
    Row("qemu-nbd", "qemu-nbd (1 copy)", qemu_nbd),
    Row("quorum", "qemu quorum (2 copies)", qemu_quorum),
    Row("mirror", "qemu mirror (2 copies)", qemu_mirror),
]
REPLICAS = (1, 2, 3)
KEYS = [row.key for row in OTHERS] + [f"lockstep{n}" for n in REPLICAS] + ["lockstep2-tls"]


def all_rows(binary: Path, against: Path | None) -> list[Row]:
    """Every row; with another build of Lockstep to compare to, each of its rows twice."""

    def build(n: int, path: Path, key: str, title: str) -> Row:
        return Row(f"{key}{n}", f"{title}, {n} replica{'s' if n > 1 else ''}", lockstep(n, path))

    rows = list(OTHERS)
    for n in REPLICAS:
        rows.append(build(n, binary, "lockstep", "Lockstep"))
        if against:
            rows.append(build(n, against, "against", "other build"))
    rows.append(Row("lockstep2-tls", "Lockstep, 2 replicas, clients by TLS",
                    lockstep(2, binary, tls=True)))
    return rows
