"""What magics return: lists that show themselves as tables, and numbers that say what they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, SupportsIndex, TypeVar, overload

from abe.backends.message_queue.base.dead_letters import PREFIX
from abe.backends.message_queue.base.message import BaseMessage
from abe.errors import UnsupportedError
from abe.ipython.render import Table, cell, limits, plural, preview, when

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Count", "DeadLetters", "Messages", "Published", "TableList"]

T = TypeVar("T")

_METADATA = ("_id", "_key", "_timestamp", "_attempt")


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

    Compares equal to a list of the payloads; ``payloads`` are the bare dicts, `to_frame` makes a
    DataFrame. Slices are `Messages` too. Tables hide credentials and cut long text; the messages
    themselves are complete.
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

    def to_frame(self) -> pd.DataFrame:
        """Return a pandas DataFrame: one row per message, one column per name in the payloads.

        The metadata come first, in ``_id``, ``_key``, ``_timestamp`` (UTC) and ``_attempt``. A
        payload's own name that collides with one of these gets ``_payload`` appended. What a
        payload lacks is missing; nested values stay lists and dicts.

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

    def table(self) -> Table:
        """Return what is shown; columns that would say nothing are left out."""
        shown = list.__getitem__(self, slice(limits.rows))
        told = {name: cells for name, cells in self._columns(shown).items() if any(cells)}
        rows: Sequence[Sequence[str]] = list(zip(*told.values(), strict=True)) if shown else []
        caption = " ".join(filter(None, [plural(len(self), self._noun), self.caption]))
        return Table(caption, list(told), rows, total=len(self), whole={"id", "time"})

    _noun = "message"

    def _columns(self, shown: Sequence[M]) -> dict[str, list[str]]:
        return {
            "#": [str(i) for i in range(len(shown))],
            "key": [cell(m.key or "") for m in shown],
            "payload": [preview(dict(m)) for m in shown],
            "headers": [preview(dict(m.headers)) if m.headers else "" for m in shown],
            "attempt": [str(m.attempt) if m.attempt != 1 else "" for m in shown],
            "time": [when(m.timestamp) for m in shown],
        }


class DeadLetters(Messages[M]):
    """Dead letters, oldest first, shown with the reason why they were given up."""

    _noun = "dead letter"

    def _columns(self, shown: Sequence[M]) -> dict[str, list[str]]:
        headers = [
            {name: text for name, text in m.headers.items() if not name.startswith(PREFIX)}
            for m in shown
        ]
        return {
            "id": [cell(m.id or "") for m in shown],
            "key": [cell(m.headers.get(f"{PREFIX}key") or m.key or "") for m in shown],
            "payload": [preview(dict(m)) for m in shown],
            "reason": [cell(m.headers.get(f"{PREFIX}reason", "")) for m in shown],
            "attempts": [cell(m.headers.get(f"{PREFIX}attempts", ""), 20) for m in shown],
            "headers": [preview(own) if own else "" for own in headers],
            "time": [when(m.timestamp) for m in shown],
        }


class Count(int):
    """A number that a cell shows as a sentence."""

    _sentence: str

    def __new__(cls, number: int, sentence: str = "") -> Count:
        """Create a number that is shown as ``sentence``."""
        self = super().__new__(cls, number)
        self._sentence = sentence or str(number)
        return self

    def __repr__(self) -> str:
        return self._sentence

    __str__ = int.__repr__


class Published(Count):
    """The number of messages published; a cell shows it as a sentence."""

    def __new__(cls, number: int, key: str = "", backend: str = "") -> Published:
        """Create the result of publishing ``number`` messages under ``key`` on ``backend``."""
        where = f"to {cell(key)} on {cell(backend)}"
        self = super().__new__(cls, number, f"published {plural(number, 'message')} {where}")
        assert isinstance(self, Published)
        return self
