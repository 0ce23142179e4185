"""What magics return: lists that show themselves as tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, SupportsIndex, TypeVar, overload

from abe.backends.message_queue.base.message import BaseMessage
from abe.ipython.render import MAX_CELL, MAX_ROWS, Table, cell, plural, preview, when

__all__ = ["Messages", "Published", "TableList"]

T = TypeVar("T")


class TableList(list[T]):
    """A list with a text and an HTML form."""

    def table(self) -> Table:
        """Return what is shown."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return self.table().to_text()

    def _repr_html_(self) -> str:
        return self.table().to_html()


M = TypeVar("M", bound=BaseMessage)


class Messages(TableList[M]):
    """Messages, oldest first: a list whose items are dicts, shown as a table.

    Compares equal to a list of the payloads; ``payloads`` are the bare dicts, e.g. for
    ``pandas.DataFrame(messages.payloads)``. Slices are `Messages` too. Tables hide credentials
    and cut long text; the messages themselves are complete.
    """

    def __init__(self, messages: Iterable[M] = (), caption: str = "") -> None:
        """Keep ``messages``.

        Args:
            messages: What was consumed or looked at.
            caption: What the table says about them, behind their number.
        """
        super().__init__(messages)
        self.caption = caption

    @property
    def payloads(self) -> list[dict[str, Any]]:
        """The bare payloads."""
        return [dict(message) for message in self]

    @overload
    def __getitem__(self, index: SupportsIndex) -> M: ...
    @overload
    def __getitem__(self, index: slice) -> Messages[M]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> M | Messages[M]:
        if isinstance(index, slice):
            return Messages(super().__getitem__(index), self.caption)
        return super().__getitem__(index)

    def table(self) -> Table:
        """Return what is shown; columns that would say nothing are left out."""
        shown = list.__getitem__(self, slice(MAX_ROWS))
        columns: dict[str, list[str]] = {
            "#": [str(i) for i in range(len(shown))],
            "key": [cell(m.key or "") for m in shown],
            "payload": [preview(dict(m)) for m in shown],
            "headers": [preview(dict(m.headers)) if m.headers else "" for m in shown],
            "attempt": [str(m.attempt) if m.attempt != 1 else "" for m in shown],
            "time": [when(m.timestamp) for m in shown],
        }
        told = {name: cells for name, cells in columns.items() if any(cells)}
        rows: Sequence[Sequence[str]] = list(zip(*told.values(), strict=True)) if shown else []
        caption = " ".join(filter(None, [plural(len(self), "message"), self.caption]))
        return Table(caption, list(told), rows, total=len(self))


class Published(int):
    """The number of messages published; a cell shows it as a sentence."""

    def __new__(cls, number: int, key: str = "", backend: str = "") -> Published:
        """Create the result of publishing ``number`` messages under ``key`` on ``backend``."""
        self = super().__new__(cls, number)
        self._where = f"to {cell(key, MAX_CELL)} on {cell(backend, MAX_CELL)}"
        return self

    _where: str

    def __repr__(self) -> str:
        return f"published {plural(int(self), 'message')} {self._where}"

    __str__ = int.__repr__
