"""``%abe_peek`` and ``%abe_stats``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from abe.backends.message_queue.base.keys import KeyFilter
from abe.ipython.grammar import Option, Syntax, count, identifier, parse
from abe.ipython.plot import bars
from abe.ipython.render import Table, cell, limits, whose
from abe.ipython.results import Messages, TableList
from abe.ipython.session import Call
from abe.types import KeyStats

__all__ = ["PEEK", "STATS", "Backlog", "peek", "stats"]

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

NUMBERS = ("ready", "in_flight", "delayed", "dead")
MAX_BARS = 20


class Backlog(TableList[KeyStats]):
    """The backlog: a list of `abe.types.KeyStats`, one per key and group, shown as a table.

    Attributes:
        approximate: Whether the broker only estimates these numbers.
    """

    def __init__(
        self, entries: Iterable[KeyStats] = (), caption: str = "", approximate: bool = False
    ) -> None:
        """Keep ``entries``.

        Args:
            entries: The numbers.
            caption: What the table says about them, behind their number.
            approximate: Whether the broker only estimates them.
        """
        super().__init__(entries)
        self.caption = caption
        self.approximate = approximate

    def table(self) -> Table:
        """Return what is shown."""
        rows = [
            (
                cell(entry.key),
                "(default)" if entry.group is None else cell(entry.group),
                *(_number(getattr(entry, name)) for name in NUMBERS),
                _age(entry.oldest_age),
            )
            for entry in self[: limits.rows]
        ]
        columns = ("key", "group", "ready", "in flight", "delayed", "dead", "oldest")
        notes = ["The broker only estimates these numbers."] if self.approximate else []
        counted = "key and group" if len(self) == 1 else "keys and groups"
        caption = f"backlog {self.caption}: {len(self):,} {counted}"
        return Table(
            caption,
            columns,
            rows,
            total=len(self),
            notes=notes,
            figure=self._figure(),
            numeric=columns[2:],
        )

    def _figure(self) -> str:
        groups = {entry.group for entry in self}
        bars_of = []
        for entry in self:
            numbers = [getattr(entry, name) or 0 for name in NUMBERS]
            if any(numbers):
                group = "" if len(groups) == 1 else f" · {cell(entry.group or '(default)', 40)}"
                bars_of.append((cell(entry.key, 60) + group, numbers))
        bars_of.sort(key=lambda bar: -sum(bar[1]))
        parts = [name.replace("_", " ") for name in NUMBERS]
        shown = bars_of[:MAX_BARS]
        text = "; ".join(f"{name}: {_words(numbers, parts)}" for name, numbers in shown)
        return bars("Messages by key", shown, parts, text)


def _words(numbers: Sequence[int], parts: Sequence[str]) -> str:
    told = [f"{n:,} {part}" for n, part in zip(numbers, parts, strict=True) if n]
    return ", ".join(told)


def _number(number: int | None) -> str:
    return "?" if number is None else f"{number:,}"


def _age(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days:,} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def peek(call: Call) -> Any:
    """Look at messages that wait, without taking them."""
    arguments = parse(PEEK, call.line, call.evaluate)
    group = call.group(arguments.options["group"])
    limit = arguments.options["number"] or call.session.settings.limit
    backend = call.session.backend()
    found = backend.peek(arguments.words or None, group=group, limit=limit)
    call.session.note(keys=(m.key for m in found), groups=[group])
    where = f"waiting on {cell(backend.name)} for {whose(group)}, not taken"
    return call.result(Messages(found, where), arguments.options["out"])


def stats(call: Call) -> Any:
    """Count what waits, by key and group."""
    arguments = parse(STATS, call.line, call.evaluate)
    wanted = KeyFilter(arguments.words or None)
    group, only = arguments.options["group"], arguments.options["group"] is not None
    backend = call.session.backend()
    found = backend.stats()
    call.session.note((e.key for e in found.entries), (e.group for e in found.entries))
    entries = [
        entry
        for entry in found.entries
        if wanted.matches(entry.key) and (not only or entry.group == (group or None))
    ]
    entries.sort(key=lambda entry: (entry.group or "", entry.key))
    backlog = Backlog(entries, f"of {cell(backend.name)}", found.approximate)
    return call.result(backlog, arguments.options["out"])
