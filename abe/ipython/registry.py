"""The background handlers of one session."""

from __future__ import annotations

import atexit
import contextvars
import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from abe.backends.message_queue.consumer import AsyncLoopConsumer
from abe.ipython.card import Card, numbers

if TYPE_CHECKING:
    from abe.sync import Worker

__all__ = ["Handler", "Registry"]

EXIT_TIMEOUT = 1.0
"""Seconds for messages in flight at exit: Jupyter kills a kernel 2.5 s after it told it to end."""
MAX_REPORTS = 5
"""Failures of one handler that are printed with their traceback."""

_logger = logging.getLogger(AsyncLoopConsumer.__module__)
_current: contextvars.ContextVar[Handler | None] = contextvars.ContextVar("_current", default=None)


class Handler:
    """A function that handles messages in the background.

    Attributes:
        name: What the magics call it.
        worker: The `abe.sync.Worker` with the counters.
        where: Backend, group and keys, in words.
    """

    worker: Worker

    def __init__(self, name: str, where: str, refresh: float) -> None:
        self.name = name
        self.where = where
        self.card = Card(name, where, refresh)
        self.reports = 0

    def __repr__(self) -> str:
        return f"<handler {self.name} {self.where}: {', '.join(numbers(self.worker))}>"

    def stop(self) -> None:
        """Take no more messages, wait for those in flight, and show the last state.

        After an interrupt, and where its own handler stops it, the card goes on until the end.
        """
        self.worker.stop()
        if not self.worker.running:
            self.card.close(self.worker)

    def summary(self) -> str:
        """Return what it has done, in words."""
        w = self.worker
        return f"{w.processed:,} processed, {w.failed:,} failed, {w.dead:,} dead"


class _FewReports(logging.Filter):
    """Print the first failures of a handler only; the card counts all.

    Where logging is set up, nothing is held back: it is Python's last resort, which writes into
    the notebook, that must not be flooded.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        found = _current.get()
        if found is None or not record.exc_info or logging.getLogger(record.name).hasHandlers():
            return True
        found.reports += 1
        if found.reports == MAX_REPORTS:
            record.msg += "; further failures of this handler are counted, not printed"
        return found.reports <= MAX_REPORTS


class Registry(dict[str, Handler]):
    """The handlers of one session, by name."""

    def __init__(self) -> None:
        super().__init__()
        self._filter = _FewReports()

    def start(self, handler: Handler, begin: Callable[[], Worker], *, live: bool) -> None:
        """Start ``handler``, in the place of one with the same name.

        Args:
            handler: What to start.
            begin: Starts its worker.
            live: Whether to show a card that follows it.
        """
        if handler.name in self:
            self.stop([handler.name])
        _logger.addFilter(self._filter)
        atexit.unregister(self._hurry)
        atexit.register(self._hurry)
        token = _current.set(handler)
        if live:
            handler.card.show()
        try:
            handler.worker = begin()
        except BaseException:
            handler.card.close(None)
            raise
        finally:
            _current.reset(token)
        self[handler.name] = handler
        handler.card.follow(handler.worker)

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
        """Let go of all, without waiting; the cards follow those that still run."""
        self.clear()
        _logger.removeFilter(self._filter)
        atexit.unregister(self._hurry)

    def _hurry(self) -> None:
        """The process is exiting: leave the portal, which will stop the workers, little to wait."""
        for handler in self.values():
            handler.worker.drain_timeout = EXIT_TIMEOUT
