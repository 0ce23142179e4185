"""Timing peers side by side: interleaved rounds, medians, ratios, one table, JSON.

A benchmark is a list of `Case`; a case names its peers, each a function that does the work once in
an empty folder and returns how many operations per second it did. Rounds are interleaved, each in
another order, so that what else the machine does falls on all alike.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Case", "Options", "Peer", "Stopwatch", "Target", "facts", "main"]

Peer = Callable[[Path, "Options"], float]


@dataclass(frozen=True)
class Target:
    """What is aimed at: ``peer`` reaches ``ratio`` times the best of ``others``.

    With ``server``, the server takes at most ``ratio`` times the processor time of theirs.
    """

    peer: str
    ratio: float
    others: Sequence[str]
    server: bool = False


@dataclass(frozen=True)
class Case:
    """One measurement.

    Attributes:
        title: What is measured.
        baseline: The peer that the others are compared with.
        peers: Name to function.
        targets: What is aimed at.
        notes: What a reader must know to read the numbers.
        unit: What a peer returns.
    """

    title: str
    baseline: str
    peers: Mapping[str, Peer]
    targets: Sequence[Target] = ()
    notes: str = ""
    unit: str = "messages/s"


@dataclass(frozen=True)
class Options:
    """What the command line said.

    Attributes:
        quick: Small sizes, to see that everything works.
        rounds: How often each peer runs.
    """

    quick: bool
    rounds: int

    def size(self, number: int) -> int:
        """Return ``number``, or a twentieth of it for a quick run."""
        return max(1, number // 20) if self.quick else number


class Rate(float):
    """Operations per second.

    Attributes:
        cpu: Seconds of processor time for each.
        server: Those of the server, where there is one.
    """

    cpu = server = math.nan


@dataclass
class Stopwatch:
    """Measures what runs inside `timing`, and nothing else.

    Attributes:
        seconds: What has been measured so far.
        cpu: Seconds of processor time of this process, all its threads together.
        server: Those of the server, which ``server_clock`` returns.
    """

    server_clock: Callable[[], float] = field(default=lambda: math.nan)
    seconds: float = field(default=0.0)
    cpu: float = field(default=0.0)
    server: float = field(default=0.0)

    @contextmanager
    def timing(self) -> Iterator[None]:
        """Count the time that the block takes."""
        served = self.server_clock()
        started, busy = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - started
            self.cpu += time.process_time() - busy
            self.server += self.server_clock() - served

    def rate(self, count: int) -> Rate:
        """Return ``count`` per second measured."""
        rate = Rate(count / self.seconds)
        rate.cpu, rate.server = self.cpu / count, self.server / count
        return rate


def main(title: str, cases: Sequence[Case], argv: Sequence[str] | None = None) -> None:
    """Run what the command line asks for, print a table for each case, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--quick", action="store_true", help="small sizes, two rounds")
    parser.add_argument("--rounds", type=int, help="rounds of each peer (default 7)")
    parser.add_argument("--only", default="", help="cases whose title contains this")
    parser.add_argument("--dir", type=Path, help="where files are written (default: temporary)")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    given = parser.parse_args(argv)
    options = Options(given.quick, given.rounds or (2 if given.quick else 7))
    print(f"# {title}\n")
    known = facts(given.dir, options)
    print("\n".join(f"- {name}: {value}" for name, value in known.items()))
    results = []
    for case in cases:
        if given.only.lower() in case.title.lower():
            samples = _measure(case, options, given.dir)
            results.append(_report(case, samples))
    if given.json is not None:
        text = json.dumps({"title": title, "facts": known, "cases": results}, indent=2)
        given.json.write_text(text + "\n", encoding="utf-8")


def _measure(case: Case, options: Options, folder: Path | None) -> dict[str, list[float]]:
    samples: dict[str, list[float]] = {name: [] for name in case.peers}
    for round_ in range(options.rounds):
        order = list(case.peers)
        random.shuffle(order)
        for name in order:
            with tempfile.TemporaryDirectory(dir=folder, prefix="abe-bench-") as place:
                samples[name].append(case.peers[name](Path(place), options))
        if sys.stderr.isatty():
            print(f"\r{case.title}: {round_ + 1}/{options.rounds}\033[K", end="", file=sys.stderr)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    return samples


def _report(case: Case, samples: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    medians = {name: statistics.median(values) for name, values in samples.items()}
    base = medians[case.baseline]
    width = max(len(name) for name in medians)
    print(f"\n## {case.title}\n")
    if case.notes:
        print(f"{case.notes}\n")
    cpu, served = (
        {
            name: statistics.median(getattr(value, side, math.nan) * 1e6 for value in values)
            for name, values in samples.items()
        }
        for side in ("cpu", "server")
    )
    more = not math.isnan(served[case.baseline])
    columns = f"{case.unit:>12} | {'min – max':>19} | ratio | CPU, µs each"
    print(f"| {'peer':<{width}} | {columns} |{' of the server |' if more else ''}")
    lines = f"{'-' * 13}:|{'-' * 20}:|------:|-------------:|{'--------------:|' if more else ''}"
    print(f"|{'-' * (width + 2)}|{lines}")
    for name, median in sorted(medians.items(), key=lambda item: -item[1]):
        spread = f"{min(samples[name]):,.0f} – {max(samples[name]):,.0f}"
        numbers = f"{median:>12,.0f} | {spread:>19} | {median / base:>5.2f} | {cpu[name]:>12.1f}"
        print(f"| {name:<{width}} | {numbers} |{f' {served[name]:>13.1f} |' if more else ''}")
    verdicts = [_verdict(target, samples) for target in case.targets]
    return {
        "title": case.title,
        "unit": case.unit,
        "baseline": case.baseline,
        "medians": medians,
        "cpu": {name: value for name, value in cpu.items() if not math.isnan(value)},
        "server": served if more else {},
        "samples": {name: list(values) for name, values in samples.items()},
        "targets": verdicts,
    }


def _verdict(target: Target, samples: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Print and return whether a target is reached."""

    def numbers(peer: str) -> list[float]:
        return [rate.server if target.server else rate for rate in samples[peer]]

    # Of rounds, because a peer and its competitor met the same conditions in each.
    best = min if target.server else max
    rounds = zip(numbers(target.peer), *map(numbers, target.others), strict=True)
    ratio = statistics.median(own / best(others) for own, *others in rounds)
    reached = ratio <= target.ratio if target.server else ratio >= target.ratio
    of = target.others[0] if len(target.others) == 1 else f"the best of {len(target.others)}"
    verdict = "reached" if reached else "NOT REACHED"
    what = f"{target.peer}, the server's CPU" if target.server else target.peer
    print(f"\n{what}: {ratio:.2f} x {of}; target {target.ratio:g}: {verdict}")
    return {
        "peer": target.peer,
        "of": [*target.others],
        "server": target.server,
        "target": target.ratio,
        "ratio": ratio,
    }


def facts(folder: Path | None, options: Options) -> dict[str, str]:
    """What the numbers depend on."""
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    return {
        "Python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "CPUs": f"{os.cpu_count()}, load {load}",
        "disk": f"{_sync_time(folder) * 1e6:,.0f} µs to sync 4 KiB in {folder or 'the default'}",
        "rounds": f"{options.rounds}, interleaved; medians",
    }


def _sync_time(folder: Path | None) -> float:
    times = []
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        for _ in range(50):
            file.write(bytes(4096))
            started = time.perf_counter()
            os.fsync(file.fileno())
            times.append(time.perf_counter() - started)
    return statistics.median(times)
