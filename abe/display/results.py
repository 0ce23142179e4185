"""Results that show themselves as tables: lists of messages, the backlog, installed backends."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, SupportsIndex, TypeVar, overload

from abe.backends.message_queue.base.dead_letters import PREFIX
from abe.backends.message_queue.base.keys import KeyFilter
from abe.backends.message_queue.base.message import BaseMessage
from abe.display.plot import bars
from abe.display.table import Table
from abe.display.text import age, cell, limits, number, plural, preview, when
from abe.errors import UnsupportedError
from abe.types import KeyStats, QueueStats

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")
M = TypeVar("M", bound=BaseMessage)

MAX_BARS = 20
_NUMBERS = ("ready", "in_flight", "delayed", "dead")


class Result:
    """A value that is shown as a table: as text in a console, as HTML in a notebook."""

    def table(self) -> Table:
        """Return the table that shows the value."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return self.table().to_text()

    def _repr_html_(self) -> str:
        return self.table().to_html()


class Listing(Result, list[T]):
    """A list that is shown as a table."""


class Messages(Listing[M]):
    """Messages, oldest first: a list whose items are dicts, shown as a table.

    Compares equal to a list of the payloads; ``payloads`` are the bare dicts, `to_frame` makes a
    DataFrame. Slices are `Messages` too. Tables hide credentials and cut long text; the messages
    themselves are complete.
    """

    _noun = "message"
    _index = "#"

    def __init__(self, messages: Iterable[M] = (), caption: str = "") -> None:
        """Keep ``messages``.

        Args:
            messages: Consumed or inspected messages.
            caption: Text that follows their number in the heading of the table.
        """
        super().__init__(messages)
        self.caption = caption

    @property
    def payloads(self) -> list[dict[str, Any]]:
        """The bare payloads."""
        return [dict(message) for message in self]

    def to_frame(self) -> pd.DataFrame:
        """Return a pandas DataFrame: one row per message, one column per name in the payloads.

        The metadata come first, in ``_id``, ``_key``, ``_timestamp`` (UTC) and ``_attempt``. A
        payload's own name that collides with one of these gets ``_payload`` appended. A name that
        a payload lacks is missing in its row; nested values stay lists and dicts.

        Raises:
            UnsupportedError: If pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError:
            raise UnsupportedError(
                "to_frame() needs pandas, which is not installed: run %pip install pandas"
            ) from None
        names = dict.fromkeys(name for message in self for name in message)
        columns: dict[str, Any] = {
            "_id": [message.id for message in self],
            "_key": [message.key for message in self],
            "_timestamp": pd.Series(
                [message.timestamp for message in self], dtype="datetime64[us, UTC]"
            ),
            "_attempt": [message.attempt for message in self],
        }
        for name in names:
            column = name
            while column in columns or (column != name and column in names):
                column += "_payload"
            columns[column] = [message.get(name) for message in self]
        return pd.DataFrame(columns)

    @overload
    def __getitem__(self, index: SupportsIndex) -> M: ...
    @overload
    def __getitem__(self, index: slice) -> Messages[M]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> M | Messages[M]:
        if isinstance(index, slice):
            return type(self)(super().__getitem__(index), self.caption)
        return super().__getitem__(index)

    def table(self, *, ids: bool = False) -> Table:
        """Return the table that shows the messages; columns without content are left out.

        Args:
            ids: Whether the first column holds the ids of the messages instead of their indexes.
        """
        shown = list.__getitem__(self, slice(limits.rows))
        if ids or self._index == "id":
            index = {"id": [cell(m.id or "") for m in shown]}
        else:
            index = {"#": [str(i) for i in range(len(shown))]}
        columns = {name: cells for name, cells in self._columns(shown).items() if any(cells)}
        columns = {**index, **columns}
        rows: Sequence[Sequence[str]] = list(zip(*columns.values(), strict=True)) if shown else []
        caption = " ".join(filter(None, [plural(len(self), self._noun), self.caption]))
        return Table(caption, list(columns), rows, total=len(self), whole={"id", "time"})

    def _columns(self, shown: Sequence[M]) -> dict[str, list[str]]:
        return {
            "key": [cell(m.key or "") for m in shown],
            "payload": [preview(dict(m)) for m in shown],
            "headers": [preview(dict(m.headers)) if m.headers else "" for m in shown],
            "attempt": [str(m.attempt) if m.attempt != 1 else "" for m in shown],
            "time": [when(m.timestamp) for m in shown],
        }


class DeadLetters(Messages[M]):
    """Dead letters, oldest first, shown with the reason why they were given up."""

    _noun = "dead letter"
    _index = "id"

    def _columns(self, shown: Sequence[M]) -> dict[str, list[str]]:
        headers = [
            {name: text for name, text in m.headers.items() if not name.startswith(PREFIX)}
            for m in shown
        ]
        return {
            "key": [cell(m.headers.get(f"{PREFIX}key") or m.key or "") for m in shown],
            "payload": [preview(dict(m)) for m in shown],
            "reason": [cell(m.headers.get(f"{PREFIX}reason", "")) for m in shown],
            "attempts": [cell(m.headers.get(f"{PREFIX}attempts", ""), 20) for m in shown],
            "headers": [preview(own) if own else "" for own in headers],
            "time": [when(m.timestamp) for m in shown],
        }


class Backlog(Result, QueueStats):
    """The backlog: `abe.types.QueueStats` shown as a table with a plot.

    Iterating yields its entries, one `abe.types.KeyStats` per key and group.
    """

    caption: str = ""

    def __init__(
        self, entries: Iterable[KeyStats] = (), approximate: bool = False, caption: str = ""
    ) -> None:
        """Keep ``entries``.

        Args:
            entries: The numbers.
            approximate: Whether the broker only estimates them.
            caption: Text that follows ``backlog`` in the heading of the table.
        """
        super().__init__(tuple(entries), approximate)
        object.__setattr__(self, "caption", caption)

    def __iter__(self) -> Iterator[KeyStats]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> KeyStats:
        return self.entries[index]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, QueueStats):
            return NotImplemented
        return (self.entries, self.approximate) == (other.entries, other.approximate)

    __hash__ = QueueStats.__hash__

    def select(
        self, keys: Sequence[str] | str | None = None, groups: Iterable[str | None] | None = None
    ) -> Backlog:
        """Return the entries of some keys and groups, sorted by group and key.

        Args:
            keys: Only keys that match one of these filters.
            groups: Only these groups; ``None`` selects every group.

        Raises:
            InvalidKeyError: If a filter is malformed.
        """
        wanted = KeyFilter(keys)
        chosen = None if groups is None else set(groups)
        entries = [
            entry
            for entry in self.entries
            if wanted.matches(entry.key) and (chosen is None or entry.group in chosen)
        ]
        entries.sort(key=lambda entry: (entry.group or "", entry.key))
        return Backlog(entries, self.approximate, self.caption)

    def table(self) -> Table:
        """Return the table that shows the entries."""
        rows = [
            (
                cell(entry.key),
                "(default)" if entry.group is None else cell(entry.group),
                *(number(getattr(entry, name)) for name in _NUMBERS),
                age(entry.oldest_age),
            )
            for entry in self.entries[: limits.rows]
        ]
        columns = ("key", "group", "ready", "in flight", "delayed", "dead", "oldest")
        counted = f"{len(self):,} {'key and group' if len(self) == 1 else 'keys and groups'}"
        title = " ".join(filter(None, ["backlog", self.caption]))
        return Table(
            f"{title}: {counted if self.entries else 'nothing is waiting'}",
            columns,
            rows,
            total=len(self),
            notes=["The broker only estimates these numbers."] if self.approximate else [],
            figure=self._figure(),
            numeric=columns[2:],
        )

    def _figure(self) -> str:
        groups = {entry.group for entry in self}
        rows: list[tuple[str, list[int]]] = []
        for entry in self:
            numbers = [getattr(entry, name) or 0 for name in _NUMBERS]
            if any(numbers):
                group = "" if len(groups) == 1 else f" · {cell(entry.group or '(default)', 40)}"
                rows.append((cell(entry.key, 60) + group, numbers))
        rows.sort(key=lambda row: -sum(row[1]))
        parts = [name.replace("_", " ") for name in _NUMBERS]
        shown = rows[:MAX_BARS]
        text = "; ".join(f"{name}: {_in_words(numbers, parts)}" for name, numbers in shown)
        return bars("Messages by key", shown, parts, text)


def _in_words(numbers: Sequence[int], parts: Sequence[str]) -> str:
    return ", ".join(f"{n:,} {part}" for n, part in zip(numbers, parts, strict=True) if n)


class Backends(Listing[T]):
    """The installed backends: a list of `abe.BackendInfo`, shown as a table.

    Attributes:
        chosen: Name of the backend that is used when none is named; "" if there is none.
    """

    def __init__(
        self, infos: Iterable[T], chosen: str = "", reason: str = "", notes: Iterable[str] = ()
    ) -> None:
        """Keep ``infos``.

        Args:
            infos: The installed backends.
            chosen: Name of the backend that is used when none is named; "" if there is none.
            reason: Why that one, or why none.
            notes: Further lines below the table.
        """
        super().__init__(infos)
        self.chosen = chosen
        why = (
            f"Without a name {chosen} is chosen: {reason}."
            if chosen
            else f"No backend would be chosen: {reason}"
        )
        self._notes = (why, *notes)

    def table(self) -> Table:
        """Return the table that shows the backends, and what is wrong with them."""
        infos: Sequence[Any] = self[: limits.rows]
        rows = [
            (
                cell(info.name),
                "deprecated" if info.deprecated is not None else info.status,
                "chosen" if info.name == self.chosen else "",
                cell(f"{info.distribution} {info.version}".strip()),
                cell(info.target),
            )
            for info in infos
        ]
        problems = [(info.name, info.error or info.deprecated) for info in infos]
        notes = [f"{name}: {problem}" for name, problem in problems if problem]
        return Table(
            plural(len(self), "backend"),
            ("backend", "status", "without a name", "distribution", "class"),
            rows,
            total=len(self),
            notes=[cell(note, 1000) for note in (*notes, *self._notes)],
        )


class Count(int):
    """A number that a cell shows as a sentence."""

    _sentence: str
    _names: tuple[str, ...] = ()

    def __new__(cls, count: int, sentence: str = "", *names: str) -> Count:
        """Create a number.

        Args:
            count: The number.
            sentence: The sentence; with ``names`` it holds a ``{}`` for each.
            names: Foreign text, redacted and cut when it is shown.
        """
        self = super().__new__(cls, count)
        self._sentence = sentence or str(count)
        self._names = names
        return self

    def __repr__(self) -> str:
        return self._sentence.format(*map(cell, self._names)) if self._names else self._sentence

    __str__ = int.__repr__
