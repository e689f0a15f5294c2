"""The comparison: every row under every load, in interleaved rounds, on RAM and on disk."""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
import time
from argparse import Namespace
from pathlib import Path

import resync
from load import LOADS, Load, fill, measure
from servers import BUILT, KEYS, Medium, Row, all_rows, build_lockstep
from system import BenchError, TemporaryDirectory, file_system, machine
from table import Results, render

RAM_FILE_SYSTEMS = {"tmpfs", "ramfs"}


def add_arguments(parser) -> None:
    parser.add_argument("--rows", type=_keys(KEYS),
                        help="only these, by comma: " + ",".join(KEYS))
    parser.add_argument("--loads", type=_keys([load.key for load in LOADS]),
                        help="only these, by comma: " + ",".join(load.key for load in LOADS))
    parser.add_argument("--media", type=_keys(["ram", "disk"]), help="only ram or only disk")
    parser.add_argument("--seconds", type=float, default=5, help="running time of one load (5)")
    parser.add_argument("--rounds", type=int, default=3,
                        help="rounds; the table shows their medians (3)")
    parser.add_argument("--size-mib", type=int, default=512, help="size of the device (512)")
    parser.add_argument("--cooldown", type=float, default=1,
                        help="seconds of rest before each load (1)")
    parser.add_argument("--quick", action="store_true",
                        help="one round of 2 s on RAM-backed files, unless said otherwise")
    parser.add_argument("--ram-dir", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--disk-dir", type=Path, default=Path("/var/tmp"))
    parser.add_argument("--lockstep", type=Path, metavar="BINARY",
                        help="measure this instead of building the tree")
    parser.add_argument("--against", type=Path, metavar="BINARY",
                        help="another build of Lockstep, measured beside it in the same rounds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all samples there")


def _keys(known: list[str]):
    def parse(text: str) -> list[str]:
        keys = text.split(",")
        for key in keys:
            if key not in known:
                raise ValueError(f"{key} is none of {', '.join(known)}")
        return keys

    parse.__name__ = "choice of " + ",".join(known)  # argparse names it in its error
    return parse


def _media(options: Namespace) -> list[Medium]:
    found = []
    for key, directory in [("ram", options.ram_dir), ("disk", options.disk_dir)]:
        if options.media and key not in options.media:
            continue
        if not directory.is_dir():
            raise BenchError(f"--{key}-dir: {directory} is not a directory")
        in_ram = file_system(directory) in RAM_FILE_SYSTEMS
        if in_ram != (key == "ram"):
            raise BenchError(
                f"--{key}-dir: {directory} is on {file_system(directory)}; name another directory"
            )
        found.append(Medium(key, directory, in_ram))
    return found


def _measure_row(row: Row, medium: Medium, loads: list[Load], options: Namespace,
                 results: Results) -> None:
    size_bytes = options.size_mib << 20
    with TemporaryDirectory(medium.parent) as directory:
        with row.running(directory, medium, size_bytes) as target:
            fill(target, size_bytes)
            for load in loads:
                time.sleep(options.cooldown)
                sample = measure(target, load, size_bytes, options.seconds)
                results.add(medium.key, row.key, load.key, sample)
                print(f"  {medium.key:4} {row.title:24} {load.title:24} {sample.iops:9.0f} IOPS "
                      f"{sample.mean_us:8.1f} us mean", file=sys.stderr, flush=True)


def run(options: Namespace) -> int:
    if options.quick:
        options.rounds, options.seconds = 1, min(options.seconds, 2)
        options.media = options.media or ["ram"]
    binary = (options.lockstep or BUILT).absolute()
    against = options.against.absolute() if options.against else None
    rows = [
        row for row in all_rows(binary, against)
        if not options.rows or row.key.replace("against", "lockstep") in options.rows
    ]
    loads = [load for load in LOADS if not options.loads or load.key in options.loads]
    media = _media(options)
    with_lockstep = any(row.key.startswith("lockstep") for row in rows)
    if with_lockstep and not options.lockstep:
        build_lockstep()

    results = Results()
    for number in range(options.rounds):
        # Each round begins with another row, so that none always follows the same neighbour.
        turn = number * max(1, len(rows) // options.rounds) % len(rows)
        for medium in media:
            print(f"round {number + 1} of {options.rounds}, {medium.key}", file=sys.stderr)
            for row in rows[turn:] + rows[:turn]:
                try:
                    _measure_row(row, medium, loads, options, results)
                except BenchError as error:
                    results.failed(medium.key, row.key, str(error))
            if with_lockstep:
                try:
                    with TemporaryDirectory(medium.parent) as directory:
                        rate = resync.measure(binary, directory, medium, options.size_mib << 20)
                    results.resyncs.setdefault(medium.key, []).append(rate)
                except BenchError as error:
                    results.failed(medium.key, "resync", str(error))

    facts = machine()
    print(render(facts, options, media, rows, loads, results))
    if options.json:
        options.json.write_text(json.dumps(_as_json(facts, options, results), indent=1) + "\n")
    return 1 if results.failures else 0


def _as_json(facts: dict[str, str], options: Namespace, results: Results) -> dict:
    cells = [
        {
            "medium": medium, "row": row, "load": load,
            "median": dataclasses.asdict(results.median(medium, row, load)),
            "samples": [dataclasses.asdict(sample) for sample in samples],
        }
        for (medium, row, load), samples in results.samples.items()
    ]
    return {
        "machine": facts,
        "settings": {key: str(value) for key, value in vars(options).items() if key != "run"},
        "cells": cells,
        "resync_mb_per_s": {key: statistics.median(each) for key, each in results.resyncs.items()},
        "failures": [
            {"medium": medium, "row": row, "reason": reason}
            for (medium, row), reason in results.failures.items()
        ],
    }


