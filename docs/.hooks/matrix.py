"""The provider matrix: what each backend declares, and what the contract suite found."""

from __future__ import annotations

import ast
import json
import logging
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from jobs import ROOT, Job
from reference import code, literal, table

__all__ = ["jobs", "matrix"]

CONTRACTS = (
    "tests/contract_test/backends/message_queue/test_*.py",
    "providers/*/tests/*contract*.py",
)
"""Where tests are that run the contract suite on one backend each."""
YEAR = 365 * 86_400.0


@dataclass(frozen=True)
class Column:
    """One backend.

    Attributes:
        name: As it is selected.
        distribution: Which package it comes with, and its version.
        declared: Its capabilities.
        job: What runs the contract suite on it, if there is such a thing.
    """

    name: str
    distribution: str
    declared: Any
    job: Job | None


def columns() -> Iterator[Column]:
    """Yield every installed backend of this project, abe's own first."""
    from abe.backends.message_queue.base import capabilities_of
    from abe.backends.message_queue.loader import list_backends, load_backend

    logging.getLogger("abe").addHandler(logging.NullHandler())
    jobs_by_name = {it.name.removeprefix("contract-"): it for it in jobs()}
    for info in sorted(list_backends(), key=lambda it: (not it.builtin, it.name)):
        if not info.builtin and not (ROOT / "providers" / str(info.distribution)).is_dir():
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            declared = capabilities_of(load_backend(info.name))
        about = f"{info.distribution} {info.version}"
        yield Column(info.name, about, declared, jobs_by_name.get(info.name))


def jobs() -> list[Job]:
    """Return what runs the contract suite on each backend."""
    return [_job(path) for pattern in CONTRACTS for path in sorted(ROOT.glob(pattern))]


def _job(path: Path) -> Job:
    name = path.stem.removeprefix("test_").removesuffix("_contract")
    options = ["-q", "-p", "no:cacheprovider", "--junitxml={result}", str(path)]
    files = [*sorted(path.parent.rglob("*.py")), ROOT / "tests" / "conftest.py", Path(__file__)]
    return Job(f"contract-{name}", ["-m", "pytest", *options], files, found)


def found(xml: str) -> Mapping[str, Any]:
    """Reduce a report of pytest to what became of each case."""
    suite = ElementTree.fromstring(xml)[0]  # noqa: S314 - pytest wrote it
    cases: dict[str, dict[str, Any]] = {}
    for test in suite.iter("testcase"):
        about = [it.get("value", "") for it in test.iter("property") if it.get("name") == "abe"]
        if not about:
            continue
        skipped = test.find("skipped")
        case = cases.setdefault(test.get("name", "").removeprefix("test_"), {"passed": False})
        case["capabilities"] = ast.literal_eval(about[0])["capabilities"]
        # Several classes may run the suite, each on another version of the broker.
        case["passed"] = case["passed"] or skipped is None
        case["reason"] = "" if skipped is None else skipped.get("message", "")
    brokers = [
        it.get("value") for it in suite.findall("properties/property") if it.get("name") == "broker"
    ]
    return {
        "when": f"{datetime.now(UTC):%Y-%m-%d}",
        "brokers": sorted(set(brokers)),
        "cases": list(cases.values()),
    }


def matrix(*, preview: bool) -> str:
    """Return the matrix as Markdown.

    Args:
        preview: Show what was found last, even if something has changed since.
    """
    shown = list(columns())
    tested = {it.name: _tested(it, preview) for it in shown}
    rows = [
        (
            f"[{code(field.name)}][abe.backends.message_queue.base.Capabilities]",
            *(_cell(it, field.name, tested[it.name]) for it in shown),
        )
        for field in fields(shown[0].declared)
    ]
    parts = [table(["capability", *(code(it.name) for it in shown)], rows), "## What was tested"]
    head = ["backend", "package", "on", "passed", "do not apply", "when"]
    parts.append(table(head, (_run(it, tested[it.name]) for it in shown)))
    untested = [line for it in shown for line in _untested(it, tested[it.name])]
    if untested:
        parts += ["## What was not tested", "\n".join(untested)]
    return "\n\n".join(parts)


def _tested(column: Column, preview: bool) -> Mapping[str, Any]:
    job = column.job
    result = None if job is None else job.latest() if preview else job.run()
    if result is None:
        return {"when": "–", "brokers": [], "cases": []}
    return dict(json.loads(result.read_text(encoding="utf-8")))


def _cell(column: Column, name: str, tested: Mapping[str, Any]) -> str:
    value = getattr(column.declared, name)
    passed = sum(it["passed"] and name in it["capabilities"] for it in tested["cases"])
    return f"{_declared(name, value)} <small>{passed or '–'}</small>"


def _declared(name: str, value: object) -> str:
    if name == "lease" and value is None:
        return "for ever"
    if isinstance(value, bool) or not value:
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return "1 year" if value == YEAR else f"{value:g} s"
    return str(value)


def _run(column: Column, tested: Mapping[str, Any]) -> tuple[str, ...]:
    package = column.distribution.partition(" ")[0]
    drivers = [
        re.split(r"[ \[<>=!~;]", it)[0]
        for it in metadata.requires(package) or ()
        if "extra ==" not in it and not it.startswith("abstract-backend")
    ]
    about = ", ".join([column.distribution, *(f"{it} {metadata.version(it)}" for it in drivers)])
    passed = sum(it["passed"] for it in tested["cases"])
    rest = sum(_does_not_apply(it) for it in tested["cases"])
    on = ", ".join(tested["brokers"]) or "–"
    return code(column.name), about, on, str(passed), str(rest), tested["when"]


def _does_not_apply(case: Mapping[str, Any]) -> bool:
    return not case["passed"] and case["reason"].startswith("the backend ")


def _untested(column: Column, tested: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each reason why a case that applies was not run."""
    if not tested["cases"]:
        yield f"- {code(column.name)}: everything"
    reasons = Counter(
        it["reason"] for it in tested["cases"] if not it["passed"] and not _does_not_apply(it)
    )
    for reason, number in sorted(reasons.items()):
        yield f"- {code(column.name)}: {number} case{'s' * (number > 1)}: {literal(reason)}"
