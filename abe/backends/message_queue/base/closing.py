"""How backends and streams close: once, with one error, never in place of the block's exception."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Future
from typing import Any

from abe.backends.message_queue.base.log_records import log
from abe.errors import AbeError, ConnectionLostError

__all__ = ["Closer", "ExitGuard", "combined", "raise_failures", "undelivered"]

logger = logging.getLogger(__name__)

PATIENCE = 30.0
"""Longest wait, in seconds, for another event loop to finish closing: it may be blocked."""


class ExitGuard:
    """Wraps the closing at the end of a ``with`` block.

    If the block raised an exception, a failure of closing goes to the log; else it is raised.

    Args:
        raised: The type of the block's exception, ``None`` if it raised none.
        what: What is closed, for the log: ``"backend"``, or a part of it.
        backend: The backend's name.
    """

    __slots__ = ("_backend", "_raised", "_what")

    def __init__(self, raised: type[BaseException] | None, what: str, backend: str) -> None:
        self._raised = raised
        self._what = what
        self._backend = backend

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: object
    ) -> bool:
        if self._raised is None or not isinstance(failure, Exception):
            return False
        text = "closing %s %s failed"
        fields = {"backend": self._backend}
        log(logger, logging.ERROR, text, self._what, self._backend, extra=fields, error=failure)
        return True


class Closer:
    """Closes a backend once; all callers, on any event loop, return when that has ended.

    Attributes:
        backend: The backend's name.
    """

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self._task: asyncio.Future[None] | None = None
        self._ended = Future[None]()

    async def run(self, close: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Call ``close``, the first time; a cancelled caller does not stop it.

        Its error is raised by each call that waits on the loop of the first.
        """
        task = self._task
        if task is None:
            task = self._task = asyncio.ensure_future(close())
            task.add_done_callback(lambda _: self._ended.set_result(None))
        elif task.done():
            return
        loop = task.get_loop()
        if loop is asyncio.get_running_loop():
            await asyncio.shield(task)
        elif not loop.is_closed():
            _, pending = await asyncio.wait([asyncio.wrap_future(self._ended)], timeout=PATIENCE)
            if pending:
                text = "backend %s is still being closed on another event loop after %g s"
                fields = {"backend": self.backend}
                log(logger, logging.WARNING, text, self.backend, PATIENCE, extra=fields)


def undelivered(count: int, reason: str = "") -> ConnectionLostError:
    """Return the error for ``count`` settlements that the broker did not get before the end."""
    text = f"closed with {count} settlements not delivered, those messages will come again"
    error = ConnectionLostError(f"{text}: {reason}" if reason else text)
    error.undelivered = count
    return error


def combined(errors: list[Exception]) -> Exception:
    """Return one error for all: it counts undelivered settlements, or the failures."""
    if len(errors) == 1:
        return errors[0]
    counts = [getattr(error, "undelivered", 0) for error in errors]
    if all(counts):
        error: AbeError = undelivered(sum(counts))
    else:
        error = AbeError(f"{len(errors)} streams failed; the cause is the error of the first")
    error.__cause__ = errors[0]
    return error


def raise_failures(results: Iterable[object]) -> None:
    """Raise the exceptions among ``results``, if there are any, as one."""
    errors = []
    for result in results:
        if isinstance(result, Exception):
            errors.append(result)
        elif isinstance(result, BaseException):
            raise result
    if errors:
        raise combined(errors)
