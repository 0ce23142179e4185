"""Blocking calls in daemon threads, so that one that never returns cannot keep the process."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

from abe.backends.message_queue.base.process import start_thread
from abe.errors import ConnectionLostError

__all__ = ["DaemonExecutor", "DaemonThreads"]

T = TypeVar("T")
Report = Callable[[], None]


class DaemonExecutor(ThreadPoolExecutor):
    """An executor that goes on working while the interpreter exits, and never delays that.

    The standard one refuses work as soon as the main thread has ended; but from then until the
    exit handlers run, other threads may still use their backends, and closing a backend may
    itself need a thread. It also joins its threads, so that one that hangs hangs the process.
    Threads are reused, and started as needed.
    """

    def __init__(self, name: str) -> None:
        super().__init__(max_workers=1, thread_name_prefix=name)
        self._name = name
        self._jobs: SimpleQueue[Callable[[], Report] | None] = SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._started = 0

    def submit(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Run ``function(*args, **kwargs)`` in a thread.

        Raises:
            ConnectionLostError: If there is no thread and none can be started now.
        """
        future: Future[T] = Future()
        job = partial(_run, future, partial(function, *args, **kwargs))
        if not self._idle.acquire(blocking=False):
            try:
                self._start()
            except ConnectionLostError as error:
                if not self._started:
                    if "interpreter shutdown" not in str(error.__cause__):
                        raise
                    job()()  # Python 3.12 starts no thread while it exits
                    return future
        self._jobs.put(job)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        for _ in range(self._started):
            self._jobs.put(None)

    def _start(self) -> None:
        start_thread(self._work, f"{self._name}-{self._started + 1}")
        self._started += 1

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            report = job()
            # Idle before it reports: who waits for this job may bring the next one at once.
            self._idle.release()
            report()
            del job, report  # while it waits, the thread must not keep what this job held


class DaemonThreads:
    """Runs functions in the threads of a `DaemonExecutor` for the running event loop."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._executor = DaemonExecutor(name)
        self._closed = False

    def submit(self, function: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        """Run ``function(*args)`` in a thread, in a copy of the caller's context.

        Cancelling the future that is returned ends the waiting, not the function.

        Raises:
            ConnectionLostError: If there is no thread and none can be started now.
            RuntimeError: If it is closed.
        """
        if self._closed:
            raise RuntimeError(f"the threads {self._name} are closed")
        loop = asyncio.get_running_loop()
        waiting: asyncio.Future[T] = loop.create_future()

        def pass_on(done: Future[T]) -> None:
            try:
                loop.call_soon_threadsafe(_copy, done, waiting)
            except RuntimeError:
                return  # the loop was closed while the function ran: nobody waits any more

        context = contextvars.copy_context()
        self._executor.submit(context.run, function, *args).add_done_callback(pass_on)
        return waiting

    def close(self) -> None:
        self._closed = True
        self._executor.shutdown()


def _run(future: Future[T], function: Callable[[], T]) -> Report:
    if not future.set_running_or_notify_cancel():
        return _nothing
    try:
        return partial(future.set_result, function())
    except BaseException as error:
        return partial(future.set_exception, error)


def _nothing() -> None:
    """The report of what was cancelled before it began."""


def _copy(done: Future[T], waiting: asyncio.Future[T]) -> None:
    if waiting.cancelled():
        return
    error = done.exception()
    if error is None:
        waiting.set_result(done.result())
    elif isinstance(error, StopIteration):
        waiting.set_exception(RuntimeError("the function raised StopIteration"))
    else:
        waiting.set_exception(error)
