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

from abe.backends.message_queue.handling.verdicts import Verdicts
from abe.display.plot import sparkline
from abe.display.results import Listing
from abe.display.table import Table
from abe.display.text import cell, limits, plural
from abe.sync.portal import get_portal

if TYPE_CHECKING:
    from IPython.core.display_functions import DisplayHandle

    from abe.sync import Worker

__all__ = ["Handler", "HandlerList", "Handlers"]

EXIT_TIMEOUT = 1.0
"""Seconds for messages in flight at exit: Jupyter kills a kernel 2.5 s after asking it to end."""
MAX_REPORTS = 5
"""Failures of one handler that are printed with their traceback."""

_logger = logging.getLogger(Verdicts.__module__)
_current: contextvars.ContextVar[Handler | None] = contextvars.ContextVar("_current", default=None)

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
    """Return the most informative error of a worker; "" if it has none."""
    error = worker.error or worker.last_error
    if error is None:
        return ""
    try:
        text = str(error)
    except Exception:
        text = "<an error that cannot be shown>"
    return cell(f"{type(error).__name__}: {text}".removesuffix(": "), 500)


class Status:
    """The display of a handler's state in the cell that started it.

    In a notebook it follows the worker: it is updated from the portal, in the context of its cell,
    while other cells run. The last state stays in the saved notebook.

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
        """Display the state in the running cell."""
        from IPython.core.display_functions import display

        self._handle = display(self._bundle(), raw=True, display_id=True)

    def follow(self, worker: Worker) -> None:
        """Follow ``worker`` until it has ended."""
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

        Programs that execute notebooks see only the output of the cell that they run.
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
        """Send the state if it has changed."""
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
            self._handle = None  # the frontend has gone

    def _bundle(self) -> dict[str, str]:
        table = self.table()
        return {"text/plain": table.to_text(), "text/html": table.to_html()}

    def table(self) -> Table:
        """Return the table that shows the state."""
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


class Handler:
    """A function that handles messages in the background.

    Attributes:
        name: Its name in the magics.
        worker: The `abe.sync.Worker` with the counters.
        where: Backend, group and keys, in words.
    """

    worker: Worker

    def __init__(self, name: str, where: str, refresh: float) -> None:
        self.name = name
        self.where = where
        self.status = Status(name, where, refresh)
        self.reports = 0

    def __repr__(self) -> str:
        return f"<handler {self.name} {self.where}: {', '.join(numbers(self.worker))}>"

    def stop(self) -> None:
        """Take no more messages, wait for those in flight, and show the last state.

        After an interrupt, and where its own handler stops it, the status is updated to the end.
        """
        self.worker.stop()
        if not self.worker.running:
            self.status.close(self.worker)

    def summary(self) -> str:
        """Return its counters in words."""
        w = self.worker
        return f"{w.processed:,} processed, {w.failed:,} failed, {w.dead:,} dead"


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

    def start(self, handler: Handler, begin: Callable[[], Worker], *, live: bool) -> None:
        """Start ``handler``, in the place of one with the same name.

        Args:
            handler: The handler.
            begin: Starts its worker.
            live: Whether to show a status display that follows it.
        """
        if handler.name in self:
            self.stop([handler.name])
        _logger.addFilter(self._filter)
        atexit.unregister(self._hurry)
        atexit.register(self._hurry)
        token = _current.set(handler)
        if live:
            handler.status.show()
        try:
            handler.worker = begin()
        except BaseException:
            handler.status.close(None)
            raise
        finally:
            _current.reset(token)
        self[handler.name] = handler
        handler.status.follow(handler.worker)

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
            self.forget()

    def forget(self) -> None:
        """Forget all without waiting; the status of those that still run is updated."""
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
