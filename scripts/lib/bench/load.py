"""The loads: what fio is told, and what is read from its answer."""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import dataclass

from servers import Target
from system import BenchError, children_cpu_s, cpu_seconds, machine_busy_seconds

FIO_GRACE_S = 60  # beyond the running time, before a fio that hangs is killed


@dataclass(frozen=True)
class Load:
    """One column of the table."""

    key: str
    title: str
    pattern: str
    block_bytes: int
    depth: int
    synced: bool = False
    jobs: int = 1  # connections, each with this depth

    @property
    def in_megabytes(self) -> bool:
        return self.block_bytes >= 1 << 20


LOADS = [
    Load("w1", "4K rand write QD1", "randwrite", 4096, 1),
    Load("w32", "4K rand write QD32", "randwrite", 4096, 32),
    Load("r32", "4K rand read QD32", "randread", 4096, 32),
    Load("jobs4", "4K rand write, 4 connections of QD8", "randwrite", 4096, 8, jobs=4),
    Load("mix32", "4K 70 % read QD32", "randrw", 4096, 32),
    Load("w64k8", "64K rand write QD8", "randwrite", 64 << 10, 8),
    Load("seq8", "1M seq write QD8", "write", 1 << 20, 8),
    Load("sync1", "4K write+fdatasync QD1", "randwrite", 4096, 1, synced=True),
]


@dataclass
class Sample:
    """What one fio run of one load on one row gave. Latencies in microseconds."""

    iops: float
    mb_per_s: float
    mean_us: float
    p99_us: float
    server_cpu_s_per_100k: float | None
    other_cpus_busy: float


def fio(target: Target, size_bytes: int, arguments: list[str], limit_s: float) -> dict:
    """Runs fio on the target and returns its only job's result."""
    command = [
        "fio",
        "--name=bench",
        "--output-format=json",
        f"--size={size_bytes}",
        "--lat_percentiles=1",
        "--clat_percentiles=0",
        *target.fio_arguments(),
        *arguments,
    ]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=limit_s, cwd=target.dir
        )
    except subprocess.TimeoutExpired:
        raise BenchError(f"fio hangs: not done after {limit_s:g} s") from None
    start = done.stdout.find("{")  # the nbd engine prints a line of its own first
    try:
        job = json.loads(done.stdout[start:])["jobs"][0]
    except (ValueError, KeyError, IndexError):
        raise BenchError(f"fio: {(done.stderr or done.stdout)[-400:].strip()}") from None
    if done.returncode != 0 or job["error"] != 0:
        raise BenchError(f"fio ended with error {job['error']}: {done.stderr[-400:].strip()}")
    return job


def fill(target: Target, size_bytes: int, seed: int = 1) -> float:
    """Writes the whole device once, so that no load measures the allocation of blocks.
    Returns MB/s."""
    job = fio(
        target,
        size_bytes,
        ["--rw=write", "--bs=1M", "--iodepth=8", "--refill_buffers", f"--randseed={seed}",
         "--end_fsync=1"],
        limit_s=300,
    )
    return job["write"]["bw_bytes"] / 1e6


def measure(target: Target, load: Load, size_bytes: int, seconds: float) -> Sample:
    """Runs one load and accounts the CPU time of the target's servers to its requests."""
    arguments = [
        f"--rw={load.pattern}",
        f"--bs={load.block_bytes}",
        f"--iodepth={load.depth}",
        "--time_based",
        f"--runtime={seconds:g}",
        "--norandommap",
        "--randrepeat=1",
    ]
    if load.jobs > 1:
        arguments += [f"--numjobs={load.jobs}", "--group_reporting"]
    if load.pattern == "randrw":
        arguments += ["--rwmixread=70", "--unified_rw_reporting=mixed"]
    if load.synced:
        # fio's nbd engine knows fsync only; the NBD servers turn its flush into fdatasync.
        arguments.append("--fdatasync=1" if target.is_file else "--fsync=1")
    server_before = cpu_seconds(target.server_pids)
    fio_before, begin = children_cpu_s(), time.monotonic()
    busy_before = machine_busy_seconds()
    job = fio(target, size_bytes, arguments, seconds + FIO_GRACE_S)
    busy_after = machine_busy_seconds()
    wall_s = time.monotonic() - begin
    server_cpu_s = cpu_seconds(target.server_pids) - server_before

    side = job[{"randread": "read", "randrw": "mixed"}.get(load.pattern, "write")]
    if side["total_ios"] == 0:
        raise BenchError("fio completed no request")
    mean_us = side["lat_ns"]["mean"] / 1e3
    p99_us = side["lat_ns"]["percentile"]["99.000000"] / 1e3
    if load.synced:
        # One request is a write and its flush: the sum of the two, for p99 an upper bound.
        mean_us += job["sync"]["lat_ns"]["mean"] / 1e3
        p99_us += job["sync"]["lat_ns"]["percentile"]["99.000000"] / 1e3
    fio_cpu_s = children_cpu_s() - fio_before
    others_s = max(0.0, busy_after - busy_before - server_cpu_s - fio_cpu_s)
    return Sample(
        iops=side["iops"],
        mb_per_s=side["bw_bytes"] / 1e6,
        mean_us=mean_us,
        p99_us=p99_us,
        server_cpu_s_per_100k=(
            server_cpu_s / side["total_ios"] * 1e5 if target.server_pids else None
        ),
        other_cpus_busy=others_s / wall_s,
    )


