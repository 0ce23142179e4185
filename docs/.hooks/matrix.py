"""The provider matrix: what each backend declares, and what the contract suite found.

``python docs/.hooks/matrix.py [NAME…]`` runs the tests that hold backends to the contract and
records in ``docs/results/`` what became of each case. The page shows what was recorded.
"""

from __future__ import annotations

import json
import logging
import re
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from jobs import ROOT, clean_environment
from reference import code, literal, table

from abe import list_backends, load_backend
from abe.backends.message_queue.base import Capabilities, capabilities_of
from abe.testing import list_cases

__all__ = ["Column", "columns", "matrix"]

RESULTS = ROOT / "docs" / "results"
CONTRACTS = (
    "tests/contract_test/backends/message_queue/test_*.py",
    "providers/*/tests/*contract*.py",
)
"""Where the tests are that run the contract suite on one backend each."""
UNTESTED = (
    "Cases for which the tests of a backend have no means, often because there is nothing to do it"
    " to: `memory` has no connections to cut."
)
YEAR = 365 * 86_400.0

_SQS = {"ABE_SQS_DEAD_LETTERS": "1"}
VARIANTS: Mapping[str, Sequence[tuple[str, Mapping[str, str], str]]] = {
    "sqs": (
        ("standard queue", {"ABE_SQS_QUEUE": "orders", **_SQS}, "TestStandard"),
        ("FIFO queue", {"ABE_SQS_QUEUE": "orders.fifo", **_SQS}, "TestFifo"),
        (
            "topic",
            {
                "ABE_SQS_TOPIC": "arn:aws:sns:eu-central-1:000000000000:orders",
                "ABE_SQS_QUEUE": "orders",
                "ABE_SQS_GROUP_QUEUE": "orders-{group}",
                **_SQS,
            },
            "TestTopic",
        ),
        (
            "FIFO topic",
            {
                "ABE_SQS_TOPIC": "arn:aws:sns:eu-central-1:000000000000:orders.fifo",
                "ABE_SQS_QUEUE": "orders.fifo",
                "ABE_SQS_GROUP_QUEUE": "orders-{group}.fifo",
                **_SQS,
            },
            "TestFifoTopic",
        ),
    ),
}
"""Backends that are several: title, variables, and the class of its tests."""


@dataclass(frozen=True)
class Column:
    """One backend, or one way to configure it.

    Attributes:
        title: What stands above it.
        declared: Its capabilities.
        report: When and where the suite ran.
        passed: The cases that passed.
        skipped: Why the others were skipped.
    """

    title: str
    declared: Capabilities
    report: Mapping[str, Any]
    passed: frozenset[str]
    skipped: Mapping[str, str]


def columns() -> Iterator[Column]:
    """Yield every installed backend of this project, abe's own first."""
    for info in sorted(list_backends(), key=lambda it: (not it.builtin, it.name)):
        path = RESULTS / f"{info.name}.json"
        if not path.exists():
            continue
        report = json.loads(path.read_text(encoding="utf-8"))
        for title, env, tests in VARIANTS.get(info.name, [("", {}, "")]):
            with _quiet():
                declared = capabilities_of(load_backend(info.name, env=env))
            # Else several classes may run the suite, each on another version of the broker.
            runs = [run for name, run in report["runs"].items() if tests in ("", name)]
            skipped = {name: reason for run in runs for name, reason in run["skipped"].items()}
            passed = frozenset(name for run in runs for name in run["passed"])
            yield Column(f"{code(info.name)} {title}".strip(), declared, report, passed, skipped)


@contextmanager
def _quiet() -> Iterator[None]:
    """Let nobody hear that the memory backend is for development."""
    handler = logging.NullHandler()
    logging.getLogger("abe").addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger("abe").removeHandler(handler)


def matrix() -> str:
    """Return the matrix as Markdown."""
    shown = list(columns())
    rows = [
        (
            f"[{code(field.name)}][abe.backends.message_queue.base.Capabilities]",
            *(_cell(it, field.name) for it in shown),
        )
        for field in fields(Capabilities)
    ]
    parts = [table(["capability", *(it.title for it in shown)], rows), "## What was tested"]
    head = ["backend", "versions", "passed", "do not apply", "when"]
    parts.append(table(head, map(_tested, shown)))
    untested = [line for it in shown for line in _untested(it)]
    return "\n\n".join([*parts, "## What was not run", UNTESTED, "\n".join(untested)])


def _cell(column: Column, name: str) -> str:
    passed = sum(name in it.capabilities and it.id in column.passed for it in list_cases())
    return f"{_declared(name, getattr(column.declared, name))} <small>{passed or '–'}</small>"


def _declared(name: str, value: object) -> str:
    if name == "lease" and value is None:
        return "for ever"
    if isinstance(value, bool) or not value:
        return "yes" if value else "no"
    if isinstance(value, int | float):
        if value == YEAR:
            return "1 year"
        return f"{value:g} s" if value % 3600 else f"{value / 3600:g} h"
    return str(value)


def _applies(reason: str) -> bool:
    return not reason.startswith("the backend ")


def _tested(column: Column) -> tuple[str, ...]:
    reasons = [why for name, why in column.skipped.items() if name not in column.passed]
    return (
        column.title,
        ", ".join(column.report["versions"]),
        str(len(column.passed)),
        str(sum(not _applies(why) for why in reasons)),
        column.report["when"],
    )


def _untested(column: Column) -> Iterator[str]:
    """Yield a line for each reason why cases that apply were not run."""
    cases: dict[str, list[str]] = {}
    for name, reason in column.skipped.items():
        if name not in column.passed and _applies(reason):
            cases.setdefault(reason, []).append(code(name))
    for reason, names in sorted(cases.items()):
        yield f"- {column.title}, {literal(reason)}: {', '.join(names)}"


# --- Recording ------------------------------------------------------------------------------------


def record(path: Path) -> None:
    """Run the tests of one backend and write down what became of each case.

    Raises:
        SystemExit: If a test fails.
    """
    name = path.stem.removeprefix("test_").removesuffix("_contract")
    with tempfile.TemporaryDirectory() as folder:
        xml = Path(folder) / "report.xml"
        command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={xml}", str(path)]
        subprocess.run(  # noqa: S603 - this interpreter, our own arguments
            [sys.executable, *command], cwd=ROOT, env=clean_environment(), check=True
        )
        suite = ElementTree.fromstring(xml.read_text(encoding="utf-8"))[0]  # noqa: S314 - ours
    runs: dict[str, Any] = {}
    for test in suite.iter("testcase"):
        if not any(it.get("name") == "abe" for it in test.iter("property")):
            continue
        group = runs.setdefault(
            test.get("classname", "").rpartition(".")[2].removesuffix("Consumer"),
            {"passed": [], "skipped": {}},
        )
        case = test.get("name", "").removeprefix("test_")
        skipped = test.find("skipped")
        if skipped is None:
            group["passed"].append(case)
        else:
            group["skipped"][case] = skipped.get("message")
    report = {"when": f"{datetime.now(UTC):%Y-%m-%d}", "versions": _versions(name), "runs": runs}
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
    (RESULTS / f"{name}.json").write_text(text, encoding="utf-8")


def _versions(name: str) -> list[str]:
    """Return the versions of the package a backend comes with, of what it needs, and of Python."""
    package = next(str(it.distribution) for it in list_backends() if it.name == name)
    packages = [package]
    for requirement in metadata.requires(package) or ():
        needed = re.split(r"[ \[<>=!~;]", requirement)[0]
        if "extra ==" not in requirement and needed != "abstract-backend":
            packages.append(needed)
    python = f"Python {sys.version.split()[0]}"
    return [*(f"{it} {metadata.version(it)}" for it in packages), *_brokers(name), python]


def _brokers(name: str) -> list[str]:
    """Return what the tests of a backend ran against."""
    if name == "sqlite":
        return [f"SQLite {sqlite3.sqlite_version}"]
    if name == "sqs":
        return [f"moto {metadata.version('moto')}"]
    if name != "redis":
        return []
    from abe_backend_redis.testing import find_server

    servers = [str(path) for path in map(find_server, (None, "6.2")) if path]
    told = [subprocess.check_output([it, "--version"], text=True) for it in servers]  # noqa: S603
    return [f"Redis {found[1]}" for it in told if (found := re.search(r"v=([\d.]+)", it))]


def main() -> None:
    """Record the backends named, or all."""
    for path in (it for pattern in CONTRACTS for it in sorted(ROOT.glob(pattern))):
        if len(sys.argv) == 1 or any(f"_{name}" in path.stem for name in sys.argv[1:]):
            record(path)


if __name__ == "__main__":
    main()
