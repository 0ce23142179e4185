"""The stream's connection: one receiver at a time, replaced by a new one when it breaks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from abe.backends.message_queue.base.backoff import Backoff, pause, transient
from abe.backends.message_queue.base.log_records import log, summary
from abe.backends.message_queue.base.receiver import Receiver
from abe.errors import ConnectionLostError

__all__ = ["ReconnectingReceiver", "ask"]

T = TypeVar("T")

logger = logging.getLogger(__name__)

BACKOFF = Backoff(first=0.1, maximum=10.0)
CLOSE_TIMEOUT = 5.0
"""Seconds that a receiver may take to close."""


async def ask(call: Awaitable[T]) -> T:
    """Await what a method of a receiver returned.

    A cancellation that nobody asked for is a `ConnectionLostError`: drivers do so to what waits on
    a connection that is gone.
    """
    try:
        return await call
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise ConnectionLostError("the driver cancelled the call") from error


class ReconnectingReceiver:
    """Opens receivers, and replaces a broken one with backoff, whoever notices first.

    ``on_lost`` is called once per outage, before reconnecting.
    """

    def __init__(
        self, factory: Callable[[], Receiver], name: str, on_lost: Callable[[], None]
    ) -> None:
        self._factory = factory
        self._name = name
        self._fields = {"backend": name}
        self._on_lost = on_lost
        self._lock = asyncio.Lock()
        self._closing = asyncio.Event()
        self._deadline = 0.0
        self._failures = 0
        """In a row; an outage is over only once a call has succeeded."""
        self._unclosed: dict[int, Receiver] = {}
        self.receiver: Receiver | None = None

    async def open(self) -> Receiver:
        """Connect, retrying while the broker is unreachable; other errors are raised."""
        async with self._lock:
            if self.receiver is None:
                self.receiver = await self._reach(None)
            return self.receiver

    async def recover(self, broken: Receiver, error: BaseException) -> None:
        """Replace ``broken``; returns at once if that has already happened."""
        async with self._lock:
            if self.receiver is not broken:
                return
            self.receiver = None
            self._on_lost()
            with suppress(Exception):
                broken.wake()
            with suppress(Exception):
                await self._dispose(broken)
            self.receiver = await self._reach(error)

    def confirm(self) -> None:
        """A call has succeeded: the outage, if there was one, is over."""
        if self._failures:
            self._failures = 0
            log(logger, logging.INFO, "reconnected to backend %s", self._name, extra=self._fields)

    async def aclose(self) -> None:
        self.give_up_after(0.0)
        self.receiver = None
        for receiver in list(self._unclosed.values()):
            try:
                await self._dispose(receiver)
            except Exception as error:
                if not transient(error):
                    raise

    async def _dispose(self, receiver: Receiver) -> None:
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await ask(receiver.aclose())
        except Exception:  # closed as well as can be; only a cancellation is worth another try
            self._unclosed.pop(id(receiver), None)
            raise
        self._unclosed.pop(id(receiver), None)

    def give_up_after(self, seconds: float) -> None:
        """Try for ``seconds`` more, at least the attempt in progress, to reach the broker."""
        self._deadline = asyncio.get_running_loop().time() + seconds
        self._closing.set()

    async def _reach(self, error: BaseException | None) -> Receiver:
        while True:
            if error is not None:
                await self._back_off(error)
            receiver = None
            try:
                receiver = self._factory()
                self._unclosed[id(receiver)] = receiver
                await ask(receiver.open())
            except BaseException as failure:
                if receiver is not None:
                    with suppress(Exception):
                        await self._dispose(receiver)
                if not transient(failure):
                    raise
                now = asyncio.get_running_loop().time()
                if self._closing.is_set() and now >= self._deadline:
                    text = f"backend {self._name!r} cannot be reached: {summary(failure)}"
                    raise ConnectionLostError(text) from failure
                error = failure
            else:
                return receiver

    async def _back_off(self, error: BaseException) -> None:
        level = logging.DEBUG if self._failures else logging.WARNING
        text = "backend %s cannot be reached (%s); retrying"
        log(logger, level, text, self._name, summary(error), extra=self._fields)
        self._failures += 1
        stop = None if self._closing.is_set() else self._closing
        await pause(BACKOFF.delay(self._failures), stop)
