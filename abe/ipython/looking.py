"""``%abe_peek`` and ``%abe_stats``."""

from __future__ import annotations

from typing import Any

from abe.display.results import Backlog, Messages
from abe.display.text import cell, group_name
from abe.ipython.grammar import Option, Syntax, count, identifier, parse
from abe.ipython.session import Call

__all__ = ["PEEK", "STATS", "peek", "stats"]

PEEK = Syntax(
    "%abe_peek",
    "[KEYS…] [-g GROUP] [-n 10] [-o NAME]",
    (
        Option("--group", "-g", "GROUP"),
        Option("--number", "-n", "N", count),
        Option("--out", "-o", "NAME", identifier),
    ),
)
STATS = Syntax(
    "%abe_stats",
    "[KEYS…] [-g GROUP] [-o NAME]",
    (
        Option("--group", "-g", "GROUP"),
        Option("--out", "-o", "NAME", identifier),
    ),
)


def peek(call: Call) -> Any:
    """Look at messages that wait, without taking them."""
    arguments = parse(PEEK, call.line, call.evaluate)
    group = call.group(arguments.options["group"])
    limit = arguments.options["number"] or call.session.settings.limit
    backend = call.session.backend()
    found = backend.peek(arguments.words or None, group=group, limit=limit)
    call.session.note(keys=(m.key for m in found), groups=[group])
    where = f"waiting on {cell(backend.name)} for {group_name(group)}, not taken"
    return call.result(Messages(found, where), arguments.options["out"])


def stats(call: Call) -> Any:
    """Count what waits, by key and group."""
    arguments = parse(STATS, call.line, call.evaluate)
    group = arguments.options["group"]
    backend = call.session.backend()
    found = backend.stats()
    call.session.note((e.key for e in found.entries), (e.group for e in found.entries))
    backlog = Backlog(found.entries, found.approximate, f"of {cell(backend.name)}")
    chosen = backlog.select(arguments.words or None, None if group is None else [group or None])
    return call.result(chosen, arguments.options["out"])
