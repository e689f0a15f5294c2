"""The result: medians over the rounds, and their rendering as one Markdown table."""

from __future__ import annotations

import dataclasses
import statistics
from argparse import Namespace
from dataclasses import dataclass, field

from load import Load, Sample
from servers import Medium, Row

GOAL = 1.5  # Lockstep with 2 replicas against the best of qemu's mirrors, on RAM
NOISY_CPUS = 0.15  # other programs used more than this many CPUs: say so


@dataclass
class Results:
    samples: dict[tuple[str, str, str], list[Sample]] = field(default_factory=dict)
    failures: dict[tuple[str, str], str] = field(default_factory=dict)
    resyncs: dict[str, list[float]] = field(default_factory=dict)

    def add(self, medium: str, row: str, load: str, sample: Sample) -> None:
        self.samples.setdefault((medium, row, load), []).append(sample)

    def failed(self, medium: str, row: str, reason: str) -> None:
        self.failures[(medium, row)] = reason

    def median(self, medium: str, row: str, load: str) -> Sample | None:
        """Each figure's own median over the rounds."""
        samples = self.samples.get((medium, row, load))
        if not samples:
            return None
        figures = {}
        for each in dataclasses.fields(Sample):
            values = [getattr(sample, each.name) for sample in samples]
            figures[each.name] = None if None in values else statistics.median(values)
        return Sample(**figures)


def _cell(sample: Sample | None, load: Load) -> str:
    if sample is None:
        return "-"
    rate = f"{sample.mb_per_s:.0f} MB/s" if load.in_megabytes else f"{sample.iops:.0f}"
    cpu = sample.server_cpu_s_per_100k
    cpu_text = "" if cpu is None else f" · {cpu:.2f} s"
    return f"{rate} · {sample.mean_us:.0f}/{sample.p99_us:.0f}{cpu_text}"


def _grid(lines: list[list[str]]) -> str:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rendered = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |"
        for line in lines
    ]
    rendered.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(rendered)


def _ratio(results: Results, medium: str, load: str) -> str | None:
    ours = results.median(medium, "lockstep2", load)
    theirs = [results.median(medium, row, load) for row in ("quorum", "mirror")]
    best = max((sample.iops for sample in theirs if sample), default=0.0)
    if ours is None or best == 0.0:
        return None
    ratio = ours.iops / best
    verdict = ""
    if medium == "ram":
        verdict = f" (goal {GOAL:g}: {'reached' if ratio >= GOAL else 'MISSED'})"
    return f"{ratio:.2f}{verdict}"


def render(facts: dict[str, str], options: Namespace, media: list[Medium], rows: list[Row],
           loads: list[Load], results: Results) -> str:
    out = [", ".join(f"{name} {value}" for name, value in facts.items())]
    out.append(
        f"{options.size_mib} MiB, {options.rounds} rounds of {options.seconds:g} s, medians. "
        "Cell: IOPS (or MB/s) · mean/p99 latency in µs · CPU seconds of all server processes "
        "per 100,000 requests."
    )
    if any(row.key == "nbdkit" for row in rows) and any(not medium.in_ram for medium in media):
        out.append("nbdkit has no direct I/O: on disk it reads and writes the page cache.")
    lines = [["backing", "server", *(load.title for load in loads)]]
    for medium in media:
        for row in rows:
            cells = [_cell(results.median(medium.key, row.key, load.key), load) for load in loads]
            lines.append([medium.key, row.title, *cells])
    out += ["", _grid(lines), ""]

    for medium in media:
        for load in loads:
            if load.key in ("w1", "w32") and (ratio := _ratio(results, medium.key, load.key)):
                out.append(f"{medium.key}: Lockstep with 2 replicas / best qemu mirror, "
                           f"{load.title}: {ratio}")
    for medium, rates in results.resyncs.items():
        out.append(f"{medium}: resync of a returned replica: {statistics.median(rates):.0f} MB/s")
    noise = [sample.other_cpus_busy for each in results.samples.values() for sample in each]
    if noise and max(noise) > NOISY_CPUS:
        out.append(f"NOISY: up to {max(noise):.2f} CPUs (median {statistics.median(noise):.2f}) were "
                   "busy with neither fio nor the servers: other programs, or write-back of the "
                   "page cache.")
    for (medium, row), reason in results.failures.items():
        out.append(f"FAILED: {medium} {row}: {reason}")
    return "\n".join(out)
