"""One coroutine on the portal's loop, for whoever waits for it outside that loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

__all__ = ["Operation"]

T = TypeVar("T")


class Operation(Generic[T]):
    """Runs a coroutine and tells one waiter how it ended.

    `start`, `cancel` and `abandon` are called on the portal's loop, in the order in which the
    waiter posted them; so no lock is needed, and a result is given either to the waiter or to
    ``keep``, never to both and never to neither.
    """

    __slots__ = (
        "_abandoned",
        "_cancelled",
        "_coroutine",
        "_finished",
        "_keep",
        "_notify",
        "_task",
        "posted",
    )

    def __init__(
        self,
        coroutine: Coroutine[Any, Any, T],
        keep: Callable[[T], object] | None,
        notify: Callable[[], object],
    ) -> None:
        self._coroutine = coroutine
        self._keep = keep
        self._notify = notify
        self._task: asyncio.Task[T] | None = None
        self._cancelled = False
        self._abandoned = False
        self._finished = False
        self.posted = False
        """Set by the waiter before it posts `start`."""

    def drop(self) -> None:
        """Instead of `start`: the coroutine will never run."""
        self._coroutine.close()

    def start(self, *, refused: bool = False) -> None:
        """Begin, unless ``refused``; the task runs in a copy of the poster's context variables."""
        if refused:
            self._coroutine.close()
            self._finished = True
            self._notify()
            return
        self._task = asyncio.get_running_loop().create_task(self._coroutine)
        self._task.add_done_callback(self._finish)

    def cancel(self) -> None:
        """Ask the task to stop, once: a second time would disturb its clean-up."""
        if self._task is not None and not self._cancelled:
            self._cancelled = True
            self._task.cancel()

    def abandon(self) -> None:
        """The waiter has gone: cancel, and keep a result that comes or came nevertheless."""
        if self._abandoned or self._task is None:
            return
        self._abandoned = True
        if self._finished:
            self._keep_result()
        else:
            self.cancel()

    def _finish(self, task: asyncio.Task[T]) -> None:
        self._finished = True
        if not task.cancelled():
            task.exception()  # retrieved: the loop need not report it
        self._notify()
        if self._abandoned:
            self._keep_result()

    def _keep_result(self) -> None:
        task = self._task
        if self._keep is None or task is None or task.cancelled() or task.exception() is not None:
            return
        self._keep(task.result())

    def outcome(self) -> T:
        __tracebackhide__ = True
        task = self._task
        if task is None:
            raise concurrent.futures.CancelledError
        if task.cancelled():
            raise concurrent.futures.CancelledError
        return task.result()
