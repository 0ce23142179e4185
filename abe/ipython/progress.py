"""Progress of long operations."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from IPython.core.display_functions import DisplayHandle

__all__ = ["Progress"]

PATIENCE = 1.0
"""Seconds before anything is shown: most operations are over by then."""
INTERVAL = 0.25
"""Seconds between two updates."""


class _Line:
    """One line of text that notebooks replace as it changes."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


class Progress:
    """A line that says how far an operation is, once it has taken a while.

    Plain text, so that it stays readable in a saved notebook.

    Attributes:
        count: How many are done.
    """

    def __init__(self, total: int, done: str) -> None:
        """Count up to ``total`` of what ``done`` says, e.g. ``"published"``."""
        self._total = total
        self._done = done
        self.count = 0
        self._next = time.monotonic() + PATIENCE
        self._handle: DisplayHandle | None = None

    def __call__(self, count: int) -> None:
        """Note that ``count`` are done."""
        self.count = count
        if time.monotonic() >= self._next:
            self._show()
            self._next = time.monotonic() + INTERVAL

    def _show(self) -> None:
        from IPython.core.display_functions import display

        line = _Line(f"{self._done} {self.count:,} of {self._total:,}")
        if self._handle is None:
            self._handle = display(line, display_id=True)
        else:
            self._handle.update(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._handle is not None:
            self._show()
