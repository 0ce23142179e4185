"""The provider matrix: what each backend declares, and what the contract suite found."""

from __future__ import annotations

import ast
import json
import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from jobs import ROOT, Job
from reference import code, literal, table

from abe import list_backends, load_backend
from abe.backends.message_queue.base import Capabilities, capabilities_of

__all__ = ["jobs", "matrix"]

CONTRACTS = (
    "tests/contract_test/backends/message_queue/test_*.py",
    "providers/*/tests/*contract*.py",
)
"""Where tests are that run the contract suite on one backend each."""
YEAR = 365 * 86_400.0


_SQS = {"ABE_SQS_DEAD_LETTERS": "1"}
VARIANTS: Mapping[str, Sequence[tuple[str, Mapping[str, str], str]]] = {
    "sqs": (
        ("standard queue", {"ABE_SQS_QUEUE": "orders", **_SQS}, "TestStandard"),
        ("FIFO queue", {"ABE_SQS_QUEUE": "orders.fifo", **_SQS}, "TestFifo"),
    ),
}
"""Backends that are several: title, variables, and the tests' classes begin with this."""


@dataclass(frozen=True)
class Column:
    """One backend, or one way to configure it.

    Attributes:
        title: What stands above it.
        package: The name of the package it comes with.
        declared: Its capabilities.
        run: What the contract suite found.
    """

    title: str
    package: str
    declared: Capabilities
    run: Mapping[str, Any]

    @property
    def passed(self) -> list[Mapping[str, Any]]:
        """The cases that passed."""
        return [it for it in self.run["cases"] if it["passed"]]

    @property
    def inapplicable(self) -> list[Mapping[str, Any]]:
        """The cases that do not apply to what it declares."""
        return [
            it
            for it in self.run["cases"]
            if not it["passed"] and it["reason"].startswith("the backend ")
        ]


def columns(*, preview: bool) -> Iterator[Column]:
    """Yield every installed backend of this project, abe's own first."""
    # The memory backend warns that it is for development, here in vain.
    logging.getLogger("abe").addHandler(logging.NullHandler())
    for info in sorted(list_backends(), key=lambda it: (not it.builtin, it.name)):
        package = str(info.distribution)
        if not info.builtin and not (ROOT / "providers" / package).is_dir():
            continue
        found = [it for it in jobs() if it.name == f"contract-{info.name}"]
        for title, env, classes in VARIANTS.get(info.name, [("", {}, "")]):
            declared = capabilities_of(load_backend(info.name, env=env))
            title = f"{code(info.name)} {title}".strip()
            yield Column(title, package, declared, _run(found, classes, preview))


def _run(found: Sequence[Job], classes: str, preview: bool) -> Mapping[str, Any]:
    result = next((it.latest() if preview else it.run() for it in found), None)
    if result is None:
        return {"when": "–", "brokers": [], "cases": []}
    report = json.loads(result.read_text(encoding="utf-8"))
    cases: dict[str, Mapping[str, Any]] = {}
    for case in report["cases"]:
        # Several classes may run the suite, each on another version of the broker.
        known = cases.get(case["name"])
        if case["class"].startswith(classes) and not (known and known["passed"]):
            cases[case["name"]] = case
    return {**report, "cases": list(cases.values())}


def jobs() -> list[Job]:
    """Return what runs the contract suite on each backend."""
    return [_job(path) for pattern in CONTRACTS for path in sorted(ROOT.glob(pattern))]


def _job(path: Path) -> Job:
    name = path.stem.removeprefix("test_").removesuffix("_contract")
    options = ["-q", "-p", "no:cacheprovider", "--junitxml={result}", str(path)]
    files = [*sorted(path.parent.rglob("*.py")), ROOT / "tests" / "conftest.py", Path(__file__)]
    return Job(f"contract-{name}", ["-m", "pytest", *options], files, _reduced)


def _reduced(xml: str) -> Mapping[str, Any]:
    """Reduce a report of pytest to what became of each case."""
    suite = ElementTree.fromstring(xml)[0]  # noqa: S314 - pytest wrote it
    cases = []
    for test in suite.iter("testcase"):
        about = [it.get("value", "") for it in test.iter("property") if it.get("name") == "abe"]
        if not about:
            continue
        skipped = test.find("skipped")
        cases.append(
            {
                "name": test.get("name"),
                "class": test.get("classname", "").rpartition(".")[2],
                "capabilities": ast.literal_eval(about[0])["capabilities"],
                "passed": skipped is None,
                "reason": "" if skipped is None else skipped.get("message", ""),
            }
        )
    brokers = {
        it.get("value") for it in suite.findall("properties/property") if it.get("name") == "broker"
    }
    return {"when": f"{datetime.now(UTC):%Y-%m-%d}", "brokers": sorted(brokers), "cases": cases}


def matrix(*, preview: bool) -> str:
    """Return the matrix as Markdown.

    Args:
        preview: Show what was found last, even if something has changed since.
    """
    shown = list(columns(preview=preview))
    rows = [
        (
            f"[{code(field.name)}][abe.backends.message_queue.base.Capabilities]",
            *(_cell(it, field.name) for it in shown),
        )
        for field in fields(Capabilities)
    ]
    head = ["backend", "packages", "broker", "passed", "do not apply", "when"]
    parts = [
        table(["capability", *(it.title for it in shown)], rows),
        "## What was tested",
        table(head, map(_tested, shown)),
    ]
    untested = [line for it in shown for line in _untested(it)]
    if untested:
        parts += ["## What was not tested", "\n".join(untested)]
    return "\n\n".join(parts)


def _cell(column: Column, name: str) -> str:
    passed = sum(name in it["capabilities"] for it in column.passed)
    return f"{_declared(name, getattr(column.declared, name))} <small>{passed or '–'}</small>"


def _declared(name: str, value: object) -> str:
    if name == "lease" and value is None:
        return "for ever"
    if isinstance(value, bool) or not value:
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return "1 year" if value == YEAR else f"{value:,g} s"
    return str(value)


def _tested(column: Column) -> tuple[str, ...]:
    packages = [column.package]
    for requirement in metadata.requires(column.package) or ():
        name = re.split(r"[ \[<>=!~;]", requirement)[0]
        if "extra ==" not in requirement and name != "abstract-backend":
            packages.append(name)
    return (
        column.title,
        ", ".join(f"{it} {metadata.version(it)}" for it in packages),
        ", ".join(column.run["brokers"]) or "–",
        str(len(column.passed)),
        str(len(column.inapplicable)),
        column.run["when"],
    )


def _untested(column: Column) -> Iterator[str]:
    """Yield a line for each reason why a case that applies was not run."""
    if not column.run["cases"]:
        yield f"- {column.title}: everything"
    settled = [*column.passed, *column.inapplicable]
    reasons = Counter(it["reason"] for it in column.run["cases"] if it not in settled)
    for reason, number in sorted(reasons.items()):
        yield f"- {column.title}: {number} case{'s' * (number > 1)}: {literal(reason)}"
