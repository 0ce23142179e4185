"""The live status card of a background handler."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from abe.display.plot import sparkline
from abe.display.table import Table
from abe.display.text import cell, group_name
from abe.sync.portal import get_portal

if TYPE_CHECKING:
    from IPython.core.display_functions import DisplayHandle

    from abe.sync import Worker

__all__ = ["COLUMNS", "NUMERIC", "Card", "numbers", "problem", "state", "where"]

SAMPLES = 60
COLUMNS = ("state", "processed", "failed", "retried", "dead", "in flight", "rate")
NUMERIC = COLUMNS[1:]


def state(worker: Worker) -> str:
    """Return what a worker is doing, in one word."""
    if worker.running:
        return "running"
    return "failed" if worker.error is not None else "stopped"


def numbers(worker: Worker) -> list[str]:
    """Return the cells below `COLUMNS`."""
    counts = (worker.processed, worker.failed, worker.retried, worker.dead, worker.in_flight)
    rate = f"{worker.rate:,.1f}/s" if worker.running else ""
    return [state(worker), *(f"{count:,}" for count in counts), rate]


def problem(worker: Worker) -> str:
    """Return the error that says most about a worker; "" if there is none."""
    error = worker.error or worker.last_error
    if error is None:
        return ""
    try:
        text = str(error)
    except Exception:
        text = "<an error that cannot be shown>"
    return cell(f"{type(error).__name__}: {text}".removesuffix(": "), 500)


class Card:
    """What a cell shows of the handler that it started.

    In a notebook it follows the worker: it is updated from the portal, in the context of the cell
    that shows it, whatever other cells run. The last state stays in the saved notebook.

    Args:
        name: The handler's name.
        where: Backend, group and keys, in words.
        refresh: Seconds between two updates.
    """

    def __init__(self, name: str, where: str, refresh: float) -> None:
        self._name = name
        self._where = where
        self._refresh = refresh
        self._worker: Worker | None = None
        self._handle: DisplayHandle | None = None
        self._context = contextvars.copy_context()
        self._rates: deque[float] = deque([0.0] * 2, maxlen=SAMPLES)
        self._last = (time.monotonic(), 0)
        self._shown: Any = None
        self._closed = False

    def show(self) -> None:
        """Display it in the running cell."""
        from IPython.core.display_functions import display

        self._handle = display(self._bundle(), raw=True, display_id=True)

    def follow(self, worker: Worker) -> None:
        """Keep it up to date until ``worker`` has ended."""
        self._worker = worker
        if self._handle is not None:
            self._context.copy().run(get_portal().post, self._tick)

    def close(self, worker: Worker | None) -> None:
        """Show the last state; from any thread."""
        self._worker = worker
        self._closed = True
        self.refresh()

    def refresh(self) -> None:
        """Show the present state, in the context of the running cell.

        Programs that execute notebooks only look at what comes from the cell that they run.
        """
        if self._handle is not None:
            self._send(self._handle)

    # -- on the portal ---------------------------------------------------------------------

    def _tick(self) -> None:
        worker = self._worker
        assert worker is not None
        if self._closed:
            return
        self._sample(worker)
        self._update()
        if worker.running:
            asyncio.get_running_loop().call_later(self._refresh, self._tick)

    def _sample(self, worker: Worker) -> None:
        now, processed = time.monotonic(), worker.processed
        before, count = self._last
        self._rates.append((processed - count) / max(now - before, 0.001))
        self._last = (now, processed)

    def _update(self) -> None:
        """Send it again if it says something else now."""
        worker = self._worker
        content = worker is not None and (
            *numbers(worker),
            problem(worker),
            any(self._rates) and tuple(self._rates),
        )
        if self._handle is None or content == self._shown:
            return
        self._shown = content
        self._context.copy().run(self._send, self._handle)

    def _send(self, handle: DisplayHandle) -> None:
        try:
            handle.update(self._bundle(), raw=True)
        except Exception:
            self._handle = None  # the frontend has gone: nobody looks any more

    # -- what is shown ---------------------------------------------------------------------

    def _bundle(self) -> dict[str, str]:
        table = self.table()
        return {"text/plain": table.to_text(), "text/html": table.to_html()}

    def table(self) -> Table:
        """Return what is shown."""
        caption = f"handler {self._name} {self._where}"
        worker = self._worker
        if worker is None:
            row = ["not started" if self._closed else "starting", *([""] * (len(COLUMNS) - 1))]
            return Table(caption, COLUMNS, [row])
        error = problem(worker)
        notes = [f"last error: {error}"] if error else []
        rows = [numbers(worker)]
        figure = self._activity()
        return Table(caption, COLUMNS, rows, notes=notes, figure=figure, numeric=NUMERIC)

    def _activity(self) -> str:
        rates = list(self._rates)
        seconds = len(rates) * self._refresh
        text = (
            f"Messages per second over the last {seconds:.0f} s: now {rates[-1]:.0f},"
            f" at most {max(rates):.0f}"
        )
        return sparkline(rates, text)


def where(backend: str, group: str | None, keys: Sequence[str] | None) -> str:
    """Return in words what a handler listens to."""
    filtered = f", {cell(' '.join(keys))}" if keys else ""
    return f"on {cell(backend)}, {group_name(group)}{filtered}"
