"""Progress of long operations."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from IPython.core.display_functions import DisplayHandle

PATIENCE = 1.0
"""Seconds before anything is shown: most operations have ended by then."""
INTERVAL = 0.25
"""Seconds between two updates."""


class Progress:
    """A line with the progress of an operation, shown once it has taken a while.

    Plain text, so that it stays readable in a saved notebook. In a terminal it is one line that is
    overwritten; where that is not possible only the last state is printed.

    Attributes:
        count: Number of items that are done.
    """

    def __init__(self, total: int | None, done: str, *, live: bool) -> None:
        """Count up to ``total``, if that is known, e.g. of what is ``published``.

        What was displayed can be updated where the display is ``live``.
        """
        self._total = total
        self._done = done
        self._live = live
        self._tty = not live and sys.stderr.isatty()
        self.count = 0
        self._next = time.monotonic() + PATIENCE
        self._shown = False
        self._handle: DisplayHandle | None = None

    def __call__(self, count: int) -> None:
        """Note that ``count`` are done."""
        self.count = count
        if time.monotonic() >= self._next:
            self._show()
            self._next = time.monotonic() + INTERVAL

    def _show(self, end: str = "") -> None:
        self._shown = True
        whole = "" if self._total is None else f" of {self._total:,}"
        line = f"{self._done} {self.count:,}{whole}"
        if self._handle is not None:
            self._handle.update({"text/plain": line}, raw=True)
        elif self._live:
            from IPython.core.display_functions import display

            self._handle = display({"text/plain": line}, raw=True, display_id=True)
        elif self._tty:
            print(f"\r{line}", end=end, file=sys.stderr, flush=True)  # noqa: T201
        elif end:
            print(line)  # noqa: T201

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._shown:
            self._show(end="\n")
