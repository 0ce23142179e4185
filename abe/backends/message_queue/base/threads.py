"""Blocking calls in daemon threads, so that one that never returns cannot keep the process."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

__all__ = ["DaemonThreads"]

T = TypeVar("T")


class DaemonThreads:
    """Runs functions in threads that are reused, started as needed, and never joined.

    `concurrent.futures` joins its threads at exit, and `asyncio.run` waits for the default
    executor: with either, a handler that hangs would hang the process.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._started = 0
        self._idle = threading.Semaphore(0)
        self._closed = False

    def submit(self, function: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        """Run ``function(*args)`` in a thread, in a copy of the caller's context.

        Returns:
            A future of the running loop. Cancelling it ends the waiting, not the function.
        """
        if self._closed:
            raise RuntimeError(f"the threads {self._name} are closed")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        context = contextvars.copy_context()

        def job() -> None:
            # Idle before it reports: who waits for this job may bring the next one at once.
            try:
                result = context.run(function, *args)
            except BaseException as error:
                self._idle.release()
                _report(loop, future, error=error)
            else:
                self._idle.release()
                _report(loop, future, result=result)

        self._jobs.put(job)
        if not self._idle.acquire(blocking=False):
            self._started += 1
            name = f"{self._name}-{self._started}"
            threading.Thread(target=self._work, name=name, daemon=True).start()
        return future

    def close(self) -> None:
        """Let the threads end once they have nothing left to do."""
        self._closed = True
        for _ in range(self._started):
            self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            del job  # while it waits for the next, the thread must not keep what this one held


def _report(
    loop: asyncio.AbstractEventLoop,
    future: asyncio.Future[Any],
    *,
    result: Any = None,
    error: BaseException | None = None,
) -> None:
    def finish() -> None:
        if future.cancelled():
            return
        if error is None:
            future.set_result(result)
        elif isinstance(error, StopIteration):
            future.set_exception(RuntimeError("the function raised StopIteration"))
        else:
            future.set_exception(error)

    try:
        loop.call_soon_threadsafe(finish)
    except RuntimeError:
        return  # the loop was closed while the function ran: nobody waits any more
