"""Processes, temporary directories and facts of the machine. Knows nothing of NBD or fio."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
STOP_S = 20  # how long a server may take to end before it is killed


class BenchError(Exception):
    """A row that cannot be measured; the message says why."""


def wait_for(what: str, ready: Callable[[], object], limit_s: float, step_s: float = 0.02):
    """Polls until `ready` answers something true, and returns that."""
    deadline = time.monotonic() + limit_s
    while True:
        answer = ready()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise BenchError(f"{what}: not within {limit_s:g} s")
        time.sleep(step_s)


class Server:
    """A server process, in a process group of its own so that stopping it reaches its children."""

    def __init__(self, command: list[str], log: Path, **options):
        self.log = log
        self.command = command
        self._out = log.open("ab")
        self.process = subprocess.Popen(
            command, stdout=self._out, stderr=self._out, start_new_session=True, **options
        )
        self.pid = self.process.pid

    def wait_until(self, ready: Callable[[], object], limit_s: float = 20):
        def still_there():
            if self.process.poll() is not None:
                raise BenchError(
                    f"{self.command[0]} ended with {self.process.returncode}: {self.last_words()}"
                )
            return ready()

        try:
            return wait_for(f"{Path(self.command[0]).name} to be ready", still_there, limit_s)
        except BenchError as error:
            raise BenchError(f"{error}; it said: {self.last_words()}") from None

    def last_words(self) -> str:
        text = self.log.read_text(errors="replace").strip()
        return text[-600:] or "(nothing)"

    def stop(self, with_signal: int = signal.SIGTERM) -> None:
        if self.process.poll() is None:
            self.process.send_signal(with_signal)
            try:
                self.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                pass
        try:  # what is left of the group, children included
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        self._out.close()


def _stat(pid: int) -> tuple[int, int] | None:
    """Parent and CPU ticks (its own and its dead children's) of a process, if it is there."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text[text.rindex(")") + 2 :].split()  # the name may hold anything
    return int(fields[1]), sum(int(field) for field in fields[11:15])


def tree(roots: Iterable[int]) -> set[int]:
    """These processes and all their living descendants."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (stat := _stat(int(entry))):
            children.setdefault(stat[0], []).append(int(entry))
    found: set[int] = set()
    queue = list(roots)
    while queue:
        pid = queue.pop()
        if pid not in found:
            found.add(pid)
            queue += children.get(pid, [])
    return found


def cpu_seconds(roots: Iterable[int]) -> float:
    """CPU time, user and system, that these process trees have used so far."""
    return sum(stat[1] for pid in tree(roots) if (stat := _stat(pid))) / TICKS_PER_S


def children_cpu_s() -> float:
    """CPU time of the children that ended and were waited for, fio among them."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def machine_busy_seconds() -> float:
    """CPU time that everything on this machine has used since boot, what was stolen included."""
    fields = [int(f) for f in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    user, nice, system, _idle, _iowait, irq, softirq, steal = fields
    return (user + nice + system + irq + softirq + steal) / TICKS_PER_S


class TemporaryDirectory:
    """A directory that is gone afterwards, whatever happened."""

    def __init__(self, parent: Path):
        self.parent = parent

    def __enter__(self) -> Path:
        self.path = Path(tempfile.mkdtemp(prefix="lockstep-bench-", dir=self.parent))
        return self.path

    def __exit__(self, *_):
        shutil.rmtree(self.path, ignore_errors=True)


def file_system(path: Path) -> str:
    """Type of the file system that holds `path`."""
    best, kind = "", "unknown"
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount, fs, *_ = line.split()
        inside = f"{path.resolve()}/".startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(best):
            best, kind = mount, fs
    return kind


def free_ports(count: int, first: int = 21809) -> int:
    """The first of `count` adjacent TCP ports that nobody holds on loopback."""
    for base in range(first, 60000, count):
        sockets = []
        try:
            for port in range(base, base + count):
                sockets.append(socket.socket())
                sockets[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sockets[-1].bind(("127.0.0.1", port))
            return base
        except OSError:
            continue
        finally:
            for each in sockets:
                each.close()
    raise BenchError("no free TCP ports")


def first_line(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return (done.stdout or done.stderr).split("\n", 1)[0].strip()
    except OSError:
        return "missing"


def machine() -> dict[str, str]:
    """What a reader has to know of the machine to judge the figures."""
    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        "unknown CPU",
    )
    return {
        "cpu": f"{os.cpu_count()} x {cpu}",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') >> 20} MiB",
        "kernel": os.uname().release,
        "fio": first_line(["fio", "--version"]),
        "nbdkit": first_line(["nbdkit", "--version"]),
        "qemu": first_line(["qemu-nbd", "--version"]),
        "lockstep": first_line(["git", "describe", "--always", "--dirty"]),
    }
