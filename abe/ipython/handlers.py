"""The background handlers of a session, their status display and their table."""

from __future__ import annotations

import asyncio
import atexit
import contextvars
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from abe.backends.message_queue.base.log_records import summary
from abe.backends.message_queue.handling.verdicts import Verdicts
from abe.display.plot import sparkline
from abe.display.results import Listing
from abe.display.table import Table
from abe.display.text import cell, limits, plural
from abe.sync.portal import get_portal

if TYPE_CHECKING:
    from IPython.core.display_functions import DisplayHandle

    from abe.sync import Worker

EXIT_TIMEOUT = 1.0
"""Seconds for messages in flight at exit: Jupyter kills a kernel 2.5 s after asking it to end."""
MAX_REPORTS = 5
"""Failures of one handler that are printed with their traceback."""

_logger = logging.getLogger(Verdicts.__module__)
_current: contextvars.ContextVar[Handler | None] = contextvars.ContextVar("_current", default=None)

SAMPLES = 60
COLUMNS = ("state", "processed", "failed", "retried", "dead", "in flight", "rate")
NUMERIC = COLUMNS[1:]


def numbers(worker: Worker) -> list[str]:
    """Return the cells below `COLUMNS`."""
    state = "running" if worker.running else "failed" if worker.error else "stopped"
    counts = (worker.processed, worker.failed, worker.retried, worker.dead, worker.in_flight)
    rate = f"{worker.rate:,.1f}/s" if worker.running else ""
    return [state, *(f"{count:,}" for count in counts), rate]


def problem(worker: Worker) -> str:
    """Return the most informative error of a worker; "" if it has none."""
    error = worker.error or worker.last_error
    return "" if error is None else cell(summary(error).removesuffix(": "), 500)


class Handler:
    """A function that handles messages in the background, and the display of its state.

    In a notebook the display follows the worker: it is updated from the portal, in the context of
    its cell, while other cells run. The last state stays in the saved notebook.

    Attributes:
        name: Its name in the magics.
        where: Backend, group and keys, in words.
        worker: The `abe.sync.Worker` with the counters.
    """

    worker: Worker

    def __init__(self, name: str, where: str, refresh: float) -> None:
        self.name = name
        self.where = where
        self.reports = 0
        self._refresh = refresh
        self._without_worker = "starting"
        self._handle: DisplayHandle | None = None
        self._context = contextvars.copy_context()
        self._rates: deque[float] = deque([0.0] * 2, maxlen=SAMPLES)
        self._last = (time.monotonic(), 0)
        self._shown: Any = None
        self._closed = False

    def __repr__(self) -> str:
        return f"<handler {self.name} {self.where}: {', '.join(numbers(self.worker))}>"

    def start(self, begin: Callable[[], Worker], *, live: bool) -> None:
        """Start the worker by ``begin``, and display its state if that can be updated."""
        from IPython.core.display_functions import display

        if live:
            self._handle = display(self._bundle(), raw=True, display_id=True)
        try:
            self.worker = begin()
        except BaseException:
            self._without_worker = "not started"
            self.refresh()
            raise
        self._without_worker = ""
        if live:
            self._context.copy().run(get_portal().post, self._tick)

    def stop(self) -> None:
        """Take no more messages, wait for those in flight, and show the last state.

        After an interrupt, and where its own handler stops it, the display is updated to the end.
        """
        self.worker.stop()
        if not self.worker.running:
            self._closed = True
            self.refresh()

    def summary(self) -> str:
        """Return its counters in words."""
        w = self.worker
        return f"{w.processed:,} processed, {w.failed:,} failed, {w.dead:,} dead"

    def refresh(self) -> None:
        """Show the present state, in the context of the running cell.

        Programs that execute notebooks see only the output of the cell that they run.
        """
        if self._handle is None:
            return
        try:
            self._handle.update(self._bundle(), raw=True)
        except Exception:
            self._handle = None  # the frontend has gone

    def _tick(self) -> None:
        """Update the display on the portal, if the state has changed."""
        if self._closed:
            return
        worker = self.worker
        now, processed = time.monotonic(), worker.processed
        before, count = self._last
        self._rates.append((processed - count) / max(now - before, 0.001))
        self._last = (now, processed)
        content = (*numbers(worker), problem(worker), any(self._rates) and tuple(self._rates))
        if content != self._shown:
            self._shown = content
            self._context.copy().run(self.refresh)
        if worker.running:
            asyncio.get_running_loop().call_later(self._refresh, self._tick)

    def _bundle(self) -> dict[str, str]:
        table = self.table()
        return {"text/plain": table.to_text(), "text/html": table.to_html()}

    def table(self) -> Table:
        """Return the table that shows the state."""
        caption = f"handler {self.name} {self.where}"
        if self._without_worker:
            row = [self._without_worker, *([""] * (len(COLUMNS) - 1))]
            return Table(caption, COLUMNS, [row])
        error = problem(self.worker)
        notes = [f"last error: {error}"] if error else []
        rows = [numbers(self.worker)]
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


class _FewReports(logging.Filter):
    """Print the first failures of a handler only; its status counts all.

    Nothing is held back where logging is set up: only Python's last resort writes into the notebook
    and must not flood it.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        found = _current.get()
        if found is None or not record.exc_info or logging.getLogger(record.name).hasHandlers():
            return True
        found.reports += 1
        if found.reports == MAX_REPORTS:
            record.msg += "; further failures of this handler are counted, not printed"
        return found.reports <= MAX_REPORTS


class Handlers(dict[str, Handler]):
    """The handlers of one session, by name."""

    def __init__(self) -> None:
        super().__init__()
        self._filter = _FewReports()
        _logger.addFilter(self._filter)
        atexit.register(self._hurry)

    def start(self, handler: Handler, begin: Callable[[], Worker], *, live: bool) -> None:
        """Start ``handler``, in the place of one with the same name."""
        if handler.name in self:
            self.stop([handler.name])
        token = _current.set(handler)
        try:
            handler.start(begin, live=live)
        finally:
            _current.reset(token)
        self[handler.name] = handler

    def stop(self, names: Iterable[str]) -> list[Handler]:
        """Stop handlers and forget them; they drain side by side."""
        stopped = [self[name] for name in names]
        for handler in stopped:
            handler.worker.request_stop()
        for handler in stopped:
            handler.stop()
            del self[handler.name]
        return stopped

    def close(self) -> None:
        """Stop all and forget them, also if that is interrupted."""
        try:
            self.stop(list(self))
        finally:
            self.clear()
            _logger.removeFilter(self._filter)
            atexit.unregister(self._hurry)

    def _hurry(self) -> None:
        """Shorten the drain at exit, when the portal stops the workers."""
        for handler in self.values():
            handler.worker.drain_timeout = EXIT_TIMEOUT


class HandlerList(Listing[Handler]):
    """The handlers of a session, shown as a table."""

    def table(self) -> Table:
        """Return the table that shows the handlers."""
        rows = [
            (cell(h.name, 60), cell(h.where), *numbers(h.worker), problem(h.worker))
            for h in self[: limits.rows]
        ]
        columns = ["handler", "listens", *COLUMNS, "last error"]
        if not any(row[-1] for row in rows):
            columns, rows = columns[:-1], [row[:-1] for row in rows]
        return Table(plural(len(self), "handler"), columns, rows, total=len(self), numeric=NUMERIC)
