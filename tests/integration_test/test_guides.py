"""The tables of the guides: what the backends read, with its defaults, and what they can do."""

from __future__ import annotations

import importlib
import os
import re
from collections import UserDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from abe import load_backend
from abe.backends.message_queue.base import Capabilities, capabilities_of

ROOT = Path(__file__).resolve().parents[2]
TABLES = {
    "abe.backends.message_queue.service.memory:MemoryBackend": "docs/how-to/memory.md",
    "abe.backends.message_queue.service.sqlite:SQLiteBackend": "docs/how-to/sqlite.md",
    "abe_backend_redis.backend:RedisBackend": "providers/abe-backend-redis/README.md",
    "abe_backend_sqs.backend:SqsBackend": "providers/abe-backend-sqs/README.md",
}


class Row(NamedTuple):
    """One variable; a value is ``None`` where the table describes it in words."""

    name: str
    default: str | None
    sample: str | None


class Environment(UserDict[str, str]):
    """Notes which variables are asked for."""

    def __init__(self, variables: dict[str, str]) -> None:
        self.asked: set[str] = set()
        super().__init__(variables)

    def __getitem__(self, name: str) -> str:
        self.asked.add(name)
        return super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        self.asked.add(str(name))
        return super().__contains__(name)


def rows(page: str) -> list[Row]:
    """Return the variables of a page; several in one row have the same default and sample."""
    found: list[Row] = []
    for line in (ROOT / page).read_text(encoding="utf-8").splitlines():
        if line.startswith("| `ABE_") and line.count(" | ") >= 2:
            names, default, *_, sample = (cell.strip() for cell in line.strip("|").split(" | "))
            found += [
                Row(name, _literal(default), _literal(sample))
                for name in re.findall(r"`(ABE_\w+)`", names)
            ]
    return found


def _literal(cell: str) -> str | None:
    literal = re.match(r"`([^`]+)`", cell)
    return literal[1] if literal else None


def settings(backend: Any, patch: pytest.MonkeyPatch, **variables: str) -> tuple[Any, set[str]]:
    """Return what ``from_env`` hands to the constructor, and the variables it asks for."""
    given: list[Any] = []

    class Probe(backend):  # type: ignore[misc]
        def __init__(self, *args: object, **options: object) -> None:
            given.append((args, options))

    environment = Environment(variables)
    with patch.context() as patched:
        patched.setattr(os, "environ", environment)
        Probe.from_env()
    return given, {name for name in environment.asked if name.startswith("ABE_")}


@pytest.mark.parametrize(("target", "page"), TABLES.items(), ids=TABLES.values())
def test_variables(target: str, page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, _, name = target.partition(":")
    if not module.startswith("abe."):
        pytest.importorskip(module, reason=f"{module} is not installed")
    backend = getattr(importlib.import_module(module), name)
    unset, asked = settings(backend, monkeypatch)
    table = rows(page)
    assert {row.name for row in table} == asked
    for row in table:
        if row.default is not None:
            assert settings(backend, monkeypatch, **{row.name: row.default})[0] == unset, row
        if row.sample is not None:
            assert settings(backend, monkeypatch, **{row.name: row.sample})[0] != unset, row


YEAR = 365 * 86_400.0
CLAIMS: dict[str, tuple[str, Callable[[Capabilities], bool]]] = {
    "consumer groups": ("yes", lambda can: can.groups),
    "a later group sees what is retained": ("yes", lambda can: can.groups and can.backlog),
    "key filters, per consumer": ("yes", lambda can: can.keys == "consumer"),
    "first deliveries in publish order": (
        "to a single consumer",
        lambda can: can.ordering == "consumer",
    ),
    "`publish(delay=…)`": ("up to a year", lambda can: can.delay == YEAR),
    "peek": ("yes", lambda can: can.peek),
}
"""Rows of the table: what stands in a cell if it is so."""


@pytest.mark.parametrize("name", ["memory", "sqlite", "redis", "sqs"])
def test_what_to_choose(name: str) -> None:
    if name not in ("memory", "sqlite"):
        pytest.importorskip(f"abe_backend_{name}", reason=f"abe-backend-{name} is not installed")
    can = capabilities_of(load_backend(name, env={"ABE_SQS_QUEUE": "orders"}))
    page = (ROOT / "docs/how-to/choose-a-backend.md").read_text(encoding="utf-8")
    lines = [line.strip("| ").split(" | ") for line in page.splitlines() if line.count(" | ") == 4]
    column = lines[0].index(f"`{name}`")
    table = {cells[0]: cells[column] for cells in lines}
    for row, (cell, holds) in CLAIMS.items():
        assert (table[row] == cell) == holds(can), row
