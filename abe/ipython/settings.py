"""``%config AbeMagics.…``: what the magics do where a line does not say."""

from __future__ import annotations

from typing import Any

from IPython.core.magic import Magics
from traitlets import Float, Int, Unicode, observe

from abe.display.text import MAX_CELL, MAX_ROWS, limits

__all__ = ["Settings"]


class Settings(Magics):
    """The options of the magics that ``%config`` shows and sets."""

    group = Unicode(
        "", help="The consumer group without -g; the empty text is the default group."
    ).tag(config=True)
    limit = Int(10, min=1, help="Most messages that a magic takes or looks at without -n.").tag(
        config=True
    )
    timeout = Float(
        5.0, min=0.0, help="Longest time, in seconds, that %abe_consume waits without -t."
    ).tag(config=True)
    quiet = Float(
        0.5,
        min=0.0,
        help="Seconds without a further message after which %abe_consume ends, without -q.",
    ).tag(config=True)
    rows = Int(MAX_ROWS, min=1, max=10_000, help="Most rows of a table.").tag(config=True)
    cell_length = Int(
        MAX_CELL, min=10, max=100_000, help="Most characters of one cell of a table."
    ).tag(config=True)
    refresh = Float(
        0.5, min=0.1, help="Seconds between two updates of the card of %%abe_handler."
    ).tag(config=True)

    @observe("rows", "cell_length")
    def _set_limits(self, change: Any) -> None:
        limits.rows, limits.cell = self.rows, self.cell_length
