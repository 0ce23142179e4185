"""An event loop on a background thread, and calls into it from everywhere else.

Our own small module, because no library handles fork, Ctrl-C, interpreter exit and the async
cells of a notebook together.
"""

from __future__ import annotations

import _thread
import asyncio
import concurrent.futures
import logging
import sys
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from abe.backends.message_queue.base.log_records import log
from abe.backends.message_queue.base.process import fork_error, identity, start_thread
from abe.backends.message_queue.handling.threads import DaemonExecutor
from abe.errors import BackendClosedError, LoopError
from abe.sync.portal.interrupts import Interrupts
from abe.sync.portal.operation import Operation

__all__ = ["ThreadPortal"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

EXIT_GRACE = 10.0
"""Seconds that open backends have to close when the interpreter exits."""
LAST_CHANCE = 2.0
"""Seconds beyond that for tasks to end after a cancellation, and for the thread."""
WAKE_INTERVAL = 0.25
WAIT_SLICE = 0.25
"""Neither Ctrl-C on Windows nor `_thread.interrupt_main` ends a wait for a lock."""


class ThreadPortal:
    """An event loop on a daemon thread."""

    threaded = True

    def __init__(self) -> None:
        self.loop = _new_event_loop()
        self.loop.set_default_executor(DaemonExecutor("abe-worker"))
        self.closers: set[Callable[[], Coroutine[Any, Any, object]]] = set()
        self._process = identity.pid()
        self.exiting = False
        self.refuses = False
        self._closed = False
        try:
            self._thread = start_thread(self._run, "abe-portal")
        except BaseException:
            self.loop.close()
            raise
        self._ident = self._thread.ident

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        while not self._closed:
            # A task that raises one of these stops the loop; the error still reaches its caller.
            with suppress(KeyboardInterrupt, SystemExit):
                self.loop.run_forever()
        self.loop.close()

    @property
    def forked(self) -> bool:
        return self._process != identity.pid()

    @property
    def is_current(self) -> bool:
        return threading.get_ident() == self._ident and not self.forked

    # -- from threads ----------------------------------------------------------------------

    def call(
        self,
        coroutine: Coroutine[Any, Any, T],
        *,
        keep: Callable[[T], object] | None = None,
    ) -> T:
        """Do as `Portal.call`; an interrupt cancels ``coroutine`` and waits for its real outcome.

        A second one raises at once. So does any other exception out of a signal handler.
        """
        __tracebackhide__ = True
        if threading.get_ident() == self._ident and self.is_current:
            coroutine.close()
            raise LoopError(
                "a blocking call of abe was made on abe's own event loop, where it would wait "
                "for itself; in an async handler or callback use the awaitable view, e.g. "
                "'await q.aio.publish(…)'"
            )
        done = threading.Lock()
        done.acquire()
        operation = Operation(coroutine, keep, done.release)
        interrupts = Interrupts(partial(self.post, operation.cancel))
        try:
            with interrupts:
                if interrupts.missed():
                    coroutine.close()
                    raise KeyboardInterrupt
                self._begin(operation)
                if interrupts.raised is not None:  # before there was anything to cancel
                    self.post(operation.cancel)
                while not done.acquire(timeout=WAIT_SLICE):
                    pass
            if interrupts.raised is not None:
                raise interrupts.raised
            return operation.outcome()
        except BaseException as error:
            self._give_up(operation)
            if self.refuses and isinstance(error, concurrent.futures.CancelledError):
                raise self.refusal() from None
            raise

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Start ``coroutine`` on the portal in the caller's context and return its future."""
        try:
            self._check()
            return asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        except (RuntimeError, SystemExit):
            coroutine.close()
            raise

    def post(self, callback: Callable[..., object], *arguments: Any) -> bool:
        changed = self._process != identity.known or not identity.unforked[0]
        if self._closed or (changed and self.forked):
            return False
        try:
            self.loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:
            return False
        return True

    def post_from_finalizer(self, callback: Callable[..., object]) -> None:
        """`post` from ``__del__``, where Python prints and forgets an interrupt: not this one."""
        try:
            self.post(callback)
        except KeyboardInterrupt:
            self.post(callback)
            self.post(self.loop.call_later, 0.02, _thread.interrupt_main)  # when it is over

    # -- from event loops ------------------------------------------------------------------

    async def bridge(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Do as `Portal.bridge`; the first cancellation waits for the real outcome."""
        __tracebackhide__ = True
        here = asyncio.get_running_loop()
        if here is self.loop:
            return await coroutine
        ended: asyncio.Future[None] = here.create_future()
        operation = Operation(coroutine, None, partial(_notify, here, ended))
        self._begin(operation)
        alarm = _Alarm(here)
        try:
            try:
                await asyncio.shield(ended)
            except asyncio.CancelledError:
                self.post(operation.cancel)
                await asyncio.shield(ended)
                raise
            finally:
                alarm.cancel()
            return operation.outcome()
        except BaseException as error:
            self.post(operation.abandon)
            if self.refuses and isinstance(error, concurrent.futures.CancelledError):
                raise self.refusal() from None
            raise

    # -- inside ----------------------------------------------------------------------------

    def _check(self) -> None:
        if self.forked:
            raise fork_error("this backend", self._process)
        if self.refuses:
            raise self.refusal()

    def _begin(self, operation: Operation[Any]) -> None:
        __tracebackhide__ = True
        try:
            if self.refuses:
                self._check()
            operation.posted = True
            if not self.post(self._start, operation):
                operation.posted = False
                self._check()
                raise self.refusal()
        except (RuntimeError, SystemExit):
            operation.drop()
            raise

    def _start(self, operation: Operation[Any]) -> None:
        operation.start(refused=self.refuses)  # the loop may stop before the first step

    def refusal(self) -> BaseException:
        """Return an error; a daemon thread that works till the end ends without a word instead."""
        if threading.current_thread().daemon:
            return SystemExit()
        return BackendClosedError("the backend is closed: the interpreter is exiting")

    def _give_up(self, operation: Operation[Any]) -> None:
        if operation.posted:
            self.post(operation.abandon)
        else:
            operation.drop()

    def close(self, grace: float = EXIT_GRACE) -> None:
        self.exiting = True
        for seconds in (grace, 0.0):
            try:
                self.submit(self._wind_up(seconds)).result(seconds + LAST_CHANCE)
            except KeyboardInterrupt:
                continue
            except (RuntimeError, SystemExit, TimeoutError, concurrent.futures.CancelledError):
                pass  # closed before, or a task blocks the loop: the thread dies with the process
            break
        self.refuses = self._closed = True
        with suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.loop.stop)
        with suppress(KeyboardInterrupt):
            self._thread.join(LAST_CHANCE)

    async def _wind_up(self, grace: float) -> None:
        closing = [asyncio.ensure_future(closer()) for closer in list(self.closers)]
        if closing:
            await asyncio.wait(closing, timeout=grace)
        for task in closing:
            if task.done() and not task.cancelled() and (error := task.exception()):
                log(logger, logging.WARNING, "closing a backend at exit failed: %s", error)
        self.refuses = True
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        if rest:
            await asyncio.wait(rest, timeout=LAST_CHANCE / 2)
        await self.loop.shutdown_asyncgens()


class _Alarm:
    """Wakes an event loop of the main thread four times a second.

    ipykernel answers an interrupt by scheduling a cancellation without waking its loop, which
    would notice it only when something else happens (ipykernel#881).
    """

    __slots__ = ("_handle", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._handle: asyncio.TimerHandle | None = None
        if threading.current_thread() is threading.main_thread():
            self._ring()

    def _ring(self) -> None:
        self._handle = self._loop.call_later(WAKE_INTERVAL, self._ring)

    def cancel(self) -> None:
        if self._handle is not None:
            self._handle.cancel()


def _notify(loop: asyncio.AbstractEventLoop, ended: asyncio.Future[None]) -> None:
    with suppress(RuntimeError):  # the waiter's loop may be closed by now
        loop.call_soon_threadsafe(_set, ended)


def _set(ended: asyncio.Future[None]) -> None:
    if not ended.done():
        ended.set_result(None)


def _new_event_loop() -> asyncio.AbstractEventLoop:
    # Not the policy's loop: fork, signals and exit are known to work with the standard one only.
    if sys.platform == "win32":
        return asyncio.ProactorEventLoop()
    return asyncio.SelectorEventLoop()
