"""``abe doctor``: check the installation, the selection of a backend, and its broker."""

from __future__ import annotations

import platform
import sys
import time
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import typer

from abe import _version
from abe.backends.message_queue.loader import BackendInfo, choose_backend, list_backends
from abe.cli import options
from abe.cli.output import clean, emit_line, emit_table
from abe.cli.session import Target
from abe.display.lines import json_line
from abe.display.table import Table
from abe.display.text import cell
from abe.errors import AbeError, UnsupportedError
from abe.sync import SyncBackend, connect

EXTRAS = {
    "notebook": "ipykernel",
    "nest": "nest_asyncio2",
    "testing": "pytest",
    "cli": "typer",
    "logging": "pythonjsonlogger",
}
"""The module by which each extra is recognised."""


def doctor(
    backend: options.BackendName = None,
    env: options.Env = None,
    timeout: options.PingTimeout = 5.0,
    json: options.Json = False,
) -> None:
    """Check the installation and the selected backend.

    Shows the Python, abe and backends that are installed, which backend is selected and why, and
    whether its broker answers.

    Exit status: 0 if the selected backend answers, 1 if it does not.
    """
    found = examine(options.target(backend, env), timeout)
    show(found, as_lines=json)
    if found.problems:
        raise typer.Exit(1)


@dataclass
class Diagnosis:
    """The findings, by the names that ``--json`` shows."""

    interpreter: str = ""
    version: str = ""
    location: str = ""
    extras: list[str] = field(default_factory=list)
    backends: list[BackendInfo] = field(default_factory=list)
    backend: str | None = None
    reason: str = ""
    answer: str = ""
    warnings: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def examine(target: Target, timeout: float) -> Diagnosis:
    """Check everything; errors become part of the diagnosis."""
    found = Diagnosis(
        interpreter=f"{platform.python_version()}, {sys.executable}",
        version=_version.__version__,
        location=str(Path(_version.__file__).parent),
        extras=[extra for extra, name in EXTRAS.items() if find_spec(name)],
    )
    try:
        found.backends = list_backends(check=True)
        choice = choose_backend(target.name, env=target.env or None)
        found.backend, found.reason = choice.info.name, choice.reason
        with target.open(connect) as q:
            found.answer = _ping(q, timeout)
            found.warnings += map(clean, getattr(q.aio.backend, "warnings", ()))
    except AbeError as error:
        found.problems.append(clean(str(error)))
    except Exception as error:  # a backend may raise anything
        found.problems.append(clean(f"{type(error).__name__}: {error}"))
    return found


def _ping(q: SyncBackend, timeout: float) -> str:
    started = time.perf_counter()
    try:
        q.ping(timeout)
    except UnsupportedError:
        return "unknown: the backend has no ping()"
    return f"yes, in {(time.perf_counter() - started) * 1000:.0f} ms"


def show(found: Diagnosis, *, as_lines: bool) -> None:
    """Write the diagnosis."""
    if as_lines:
        record: dict[str, Any] = {**asdict(found), "ok": not found.problems}
        emit_line(json_line(record))
        return
    selected = f"{found.backend} ({found.reason})" if found.backend else "none"
    rows = [
        ("python", found.interpreter),
        ("abe", f"{found.version}, {found.location}"),
        ("extras", ", ".join(found.extras) or "none"),
        *(("backend", _describe(info)) for info in found.backends),
        ("selected", selected),
        *([("answers", found.answer)] if found.answer else []),
        *(("warning", warning) for warning in found.warnings),
        *(("problem", problem) for problem in found.problems),
    ]
    emit_table(Table("", ("", ""), [(name, cell(text, 1000)) for name, text in rows]))


def _describe(info: BackendInfo) -> str:
    text = f"{info.name}, of {info.distribution} {info.version}: {info.status}"
    note = info.error or (f"deprecated: {info.deprecated}" if info.deprecated else "")
    return f"{text}; {clean(note)}" if note else text
