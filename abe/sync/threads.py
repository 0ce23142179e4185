"""The threads behind `asyncio.to_thread` on the portal."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

__all__ = ["DaemonExecutor"]

T = TypeVar("T")


class DaemonExecutor(ThreadPoolExecutor):
    """An executor that goes on working while the interpreter exits, and never delays that.

    The standard one refuses work as soon as the main thread has ended; but from then until the
    exit handlers run, other threads may still use their backends, and closing a backend may
    itself need a thread. It also joins its threads, so that one that hangs hangs the process.
    """

    def __init__(self, name: str) -> None:
        super().__init__(max_workers=1, thread_name_prefix=name)
        self._name = name
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._started = 0

    def submit(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Run ``function`` in a thread; an idle one if there is one."""
        future: Future[T] = Future()
        job = partial(_run, future, partial(function, *args, **kwargs))
        if not self._idle.acquire(blocking=False) and not self._start() and not self._started:
            job()  # Python 3.12 starts no thread while it exits
            return future
        self._jobs.put(job)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Let the threads end once they have nothing left to do; never waits."""
        for _ in range(self._started):
            self._jobs.put(None)

    def _start(self) -> bool:
        name = f"{self._name}-{self._started + 1}"
        try:
            threading.Thread(target=self._work, name=name, daemon=True).start()
        except RuntimeError:
            return False
        self._started += 1
        return True

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            self._idle.release()


def _run(future: Future[T], function: Callable[[], T]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = function()
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)
