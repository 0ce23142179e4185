"""The stream's connection: one receiver at a time, replaced by a new one when it breaks."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from abe.backends.message_queue.base.receiver import Receiver
from abe.errors import ConnectionLostError

__all__ = ["TRANSIENT", "Connection", "ask"]

T = TypeVar("T")

logger = logging.getLogger(__name__)

TRANSIENT = (ConnectionError, TimeoutError)
"""Errors that a new connection may cure; `abe.errors.ConnectionLostError` is one."""

FIRST_DELAY = 0.1
MAX_DELAY = 10.0
CLOSE_TIMEOUT = 5.0
"""Seconds that a receiver may take to close."""


async def ask(call: Awaitable[T]) -> T:
    """Await what a method of a receiver returned.

    Raises:
        ConnectionLostError: If it was cancelled and nobody had asked for that: drivers do so to
            what waits on a connection that is gone.
    """
    try:
        return await call
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise ConnectionLostError("the driver cancelled the call") from error


class Connection:
    """Opens receivers, and replaces a broken one with backoff, whoever notices first.

    Args:
        factory: Makes a receiver; called again for every reconnection.
        name: The backend's name, for the log.
        on_lost: Called once per outage, before reconnecting.
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
        """Replace ``broken``; returns at once if that has already happened.

        Raises:
            ConnectionLostError: If the broker cannot be reached and the stream is closing.
        """
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
            logger.info("reconnected to backend %s", self._name, extra=self._fields)

    async def aclose(self) -> None:
        """Close the receiver, and any whose closing was interrupted."""
        self._closing.set()
        self.receiver = None
        for receiver in list(self._unclosed.values()):
            with suppress(*TRANSIENT):
                await self._dispose(receiver)

    async def _dispose(self, receiver: Receiver) -> None:
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await ask(receiver.aclose())
        except Exception:  # closed as well as can be; only a cancellation is worth another try
            self._unclosed.pop(id(receiver), None)
            raise
        self._unclosed.pop(id(receiver), None)

    def stop_waiting(self) -> None:
        """Give up after the attempt in progress instead of waiting for the broker to return."""
        self._closing.set()

    async def _reach(self, error: BaseException | None) -> Receiver:
        """Open a new receiver; ``error`` is what ended the last one, if there was one."""
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
                if not isinstance(failure, TRANSIENT):
                    raise
                if self._closing.is_set():
                    text = f"backend {self._name!r} cannot be reached: {failure}"
                    raise ConnectionLostError(text) from failure
                error = failure
            else:
                return receiver

    async def _back_off(self, error: BaseException) -> None:
        level = logging.DEBUG if self._failures else logging.WARNING
        text = "backend %s cannot be reached (%s: %s); retrying"
        logger.log(level, text, self._name, type(error).__name__, error, extra=self._fields)
        delay = min(FIRST_DELAY * 2 ** min(self._failures, 20), MAX_DELAY)
        self._failures += 1
        with suppress(TimeoutError):
            async with asyncio.timeout(delay * random.uniform(0.5, 1.0)):
                await self._closing.wait()
