"""A background consumer, as started by ``SyncBackend.worker``."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from typing import Self

from abe.backends.message_queue.base.closing import ExitGuard
from abe.backends.message_queue.base.log_records import log
from abe.backends.message_queue.consumer import AsyncLoopConsumer
from abe.sync.pool import SubscriptionPool
from abe.types import ConsumerGroup, EventHandlerFunc

__all__ = ["Worker"]

logger = logging.getLogger(__name__)

_inside: contextvars.ContextVar[Worker | None] = contextvars.ContextVar("_inside", default=None)


class Worker:
    """Handles messages in the background until it is stopped or the backend is closed.

    The handler is a sync function (it runs in a thread of its own), an async function or an
    object with ``handle_event`` (they run on abe's own event loop and must not block it).
    What it prints goes to the notebook cell that started the worker.

    Attributes:
        error: What ended the worker, if it failed permanently; ``None`` while all is well.
    """

    def __init__(
        self,
        owner: object,
        pool: SubscriptionPool,
        consumer: AsyncLoopConsumer,
        handler: EventHandlerFunc,
    ) -> None:
        self._owner = owner  # keeps the connection open
        self._pool = pool
        self._consumer = consumer
        self._handler = handler
        self._task: asyncio.Task[None] | None = None
        self._ended = threading.Event()
        self.error: BaseException | None = None

    def __repr__(self) -> str:
        name = getattr(self._handler, "__name__", type(self._handler).__name__)
        state = "running" if self.running else "failed" if self.error else "stopped"
        return (
            f"<Worker {name} on {self._pool.backend.name}, group {self.group}: {state}, "
            f"{self.processed} processed, {self.failed} failed, {self.in_flight} in flight>"
        )

    @property
    def group(self) -> ConsumerGroup:
        """The consumer group."""
        return self._consumer.group

    @property
    def running(self) -> bool:
        """Whether it still takes messages or has handlers in flight."""
        return not self._ended.is_set()

    @property
    def is_caller(self) -> bool:
        """Whether this is called by its own handler, which nothing may wait for there."""
        return _inside.get() is self

    @property
    def processed(self) -> int:
        """Messages handled successfully."""
        return self._consumer.processed

    @property
    def failed(self) -> int:
        """Handler calls that ended in an exception."""
        return self._consumer.failed

    @property
    def retried(self) -> int:
        """Failures after which the message is to come back."""
        return self._consumer.retried

    @property
    def dead(self) -> int:
        """Messages given up."""
        return self._consumer.dead

    @property
    def in_flight(self) -> int:
        """Handlers running now."""
        return self._consumer.in_flight

    @property
    def last_error(self) -> BaseException | None:
        """The last exception of the handler."""
        return self._consumer.last_error

    @property
    def rate(self) -> float:
        """Messages handled per second, over the last ten seconds."""
        return self._consumer.rate

    @property
    def drain_timeout(self) -> float:
        """Seconds that stopping waits for handlers in flight; may be changed."""
        return self._consumer.drain_timeout

    @drain_timeout.setter
    def drain_timeout(self, seconds: float) -> None:
        self._consumer.drain_timeout = seconds

    def stop(self) -> None:
        """Take no more messages and block until those in flight are settled; idempotent.

        Handlers in flight get the worker's ``drain_timeout``. Called from its own handler, or on
        abe's event loop, it returns at once and the worker stops soon after that.
        """
        __tracebackhide__ = True
        portal = self._pool.portal
        if portal.is_current or self.is_caller:
            self.request_stop()
        elif self.running:
            portal.call(self.drain())

    def request_stop(self) -> None:
        """Begin what `stop` does, from any thread, and return at once; see `wait`."""
        self._pool.portal.post(self._shut_down)

    def wait(self, timeout: float | None = None) -> bool:
        """Block until the worker has ended, at most ``timeout`` seconds.

        Returns:
            Whether it has.
        """
        __tracebackhide__ = True
        return self._ended.wait(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        __tracebackhide__ = True
        with ExitGuard(kind, "a worker on backend", self._pool.backend.name):
            self.stop()

    # -- on the portal ---------------------------------------------------------------------

    async def start(self) -> Self:
        """Begin; raises what makes the consumer fail at once."""
        self._pool.check_open()
        await self._pool.barrier()
        self._task = asyncio.get_running_loop().create_task(self._run(), name="abe-worker")
        self._pool.workers.add(self)
        try:
            await asyncio.wait([self._task], timeout=0.0)
        except asyncio.CancelledError:
            self._shut_down()
            raise
        if self.error is not None:
            raise self.error
        return self

    async def _run(self) -> None:
        _inside.set(self)
        try:
            await self._consumer.run(self._handler)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # also a handler's SystemExit: nobody sees it but here
            self.error = error
            if self._task is not None and self in self._pool.workers:
                text = "worker on backend %s failed"
                log(logger, logging.ERROR, text, self._pool.backend.name, error=error)
        finally:
            self._pool.workers.discard(self)
            self._ended.set()

    def _shut_down(self) -> None:
        self._pool.in_background(self._consumer.shutdown())

    async def drain(self) -> None:
        """Shut the consumer down and wait for the end; goes on if the waiting is cancelled."""
        self._shut_down()
        if self._task is not None:
            await asyncio.wait([self._task])
