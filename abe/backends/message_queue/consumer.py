"""`AsyncLoopConsumer`: runs a handler over a backend's messages, with a policy for failures."""

from __future__ import annotations

import asyncio
import inspect
import logging
import random
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from abe.backends.message_queue.base import (
    Message,
    MessageStream,
    SyncMessage,
    capabilities_of,
    encode_payload,
    open_stream,
    validate_group,
    validate_key,
)
from abe.backends.message_queue.base.dead import dead_headers, reason_for
from abe.backends.message_queue.base.plain import backend_name
from abe.backends.message_queue.base.threads import DaemonThreads
from abe.errors import ConfigurationError, Reject, Retry
from abe.types import (
    ConsumerGroup,
    EventHandlerFunc,
    EventHandlerProtocol,
    MessageQueueBackendProtocol,
)

__all__ = ["AsyncLoopConsumer", "RetryPolicy"]

logger = logging.getLogger(__name__)

RATE_WINDOW = 10.0
"""Seconds over which `AsyncLoopConsumer.rate` is measured."""

Handler = Callable[[Message], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how late a failed message is tried again.

    Attributes:
        max_attempts: Deliveries after which a message that fails goes to the dead letters.
        base: Seconds before the second attempt.
        factor: By which each further wait is longer.
        max_delay: Longest wait, in seconds.
        jitter: Whether to wait a random 50 to 100 % of that, so that failures spread out.

    Raises:
        ConfigurationError: If a number is out of range.
    """

    max_attempts: int = 5
    base: float = 0.5
    factor: float = 2.0
    max_delay: float = 60.0
    jitter: bool = True

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ConfigurationError(f"max_attempts is {self.max_attempts}; it must be at least 1")
        if self.base < 0 or self.max_delay < 0 or self.factor < 1:
            raise ConfigurationError("base and max_delay must be 0 or more, factor 1 or more")

    def delay(self, attempt: int) -> float:
        """Return the seconds to wait after attempt number ``attempt`` (from 1) has failed."""
        try:
            wait = min(self.base * self.factor ** (attempt - 1), self.max_delay)
        except OverflowError:
            wait = self.max_delay
        return wait * random.uniform(0.5, 1.0) if self.jitter else wait


class AsyncLoopConsumer:
    """Runs a handler for each message of a group, and settles by what becomes of it.

    The handler returned: ack. It raised `abe.Reject`: dead letters. It raised `abe.Retry`, or
    anything else: the message comes back later, until `RetryPolicy.max_attempts`; then it is
    rejected where the backend has dead letters, else published to ``dead_letter_key``, else
    logged as an error and dropped (announced by one warning when `run` starts). A message that
    arrives with more than twice ``max_attempts`` attempts kills its consumers and is rejected
    unhandled. Where the backend cannot delay a failed message, the consumer waits and tries again
    in process, keeping the lease. Works with any backend.

    Args:
        backend: Where messages come from.
        group: The consumer group.
        keys: Only keys that match one of these.
        concurrency: Most handlers at a time. Where the backend's ordering is per key, messages of
            one key are still handled one after the other.
        retry: What to do after a failure.
        dead_letter_key: Where exhausted messages are published if the backend has no dead
            letters; this consumer never handles messages of that key.
        drain_timeout: Seconds that `shutdown` waits for handlers in flight.

    Attributes:
        processed: Messages handled successfully.
        failed: Handler calls that ended in an exception.
        retried: Failures after which the message is to come back.
        dead: Messages given up.
        in_flight: Handlers running now.
        last_error: The last exception of a handler.
    """

    def __init__(
        self,
        backend: MessageQueueBackendProtocol,
        group: ConsumerGroup = None,
        *,
        keys: Sequence[str] | str | None = None,
        concurrency: int = 1,
        retry: RetryPolicy | None = None,
        dead_letter_key: str | None = None,
        drain_timeout: float = 30.0,
    ) -> None:
        if concurrency < 1:
            raise ConfigurationError(f"concurrency is {concurrency}; it must be at least 1")
        if drain_timeout < 0:
            raise ConfigurationError(f"drain_timeout is {drain_timeout}; it must be 0 or more")
        self.backend = backend
        self.group = validate_group(group)
        self.keys = keys
        self.concurrency = concurrency
        self.retry = retry if retry is not None else RetryPolicy()
        self.dead_letter_key = None if dead_letter_key is None else validate_key(dead_letter_key)
        self.drain_timeout = drain_timeout
        self.processed = 0
        self.failed = 0
        self.retried = 0
        self.dead = 0
        self.in_flight = 0
        self.last_error: BaseException | None = None
        self._name = backend_name(backend)
        self._finished: deque[float] = deque(maxlen=10_000)
        self._run: _Run | None = None
        self._stopped = False

    @property
    def rate(self) -> float:
        """Messages handled per second, over the last ten seconds."""
        now = time.monotonic()
        recent = 0
        oldest = now
        for moment in reversed(self._finished):
            if now - moment > RATE_WINDOW:
                break
            recent, oldest = recent + 1, moment
        full = recent == self._finished.maxlen
        return recent / max(now - oldest, 0.001) if full else recent / RATE_WINDOW

    async def run(self, handler: EventHandlerFunc) -> None:
        """Handle messages until `shutdown`, or until a plain backend's iterator ends.

        A second call with the same handler while running returns at once. Cancelling it releases
        the messages in flight.

        Args:
            handler: A sync function (run in a worker thread, given `abe.sync` messages that block
                on settling), an async function, or an object with ``handle_event``.

        Raises:
            RuntimeError: If it is running with another handler.
            UnsupportedError: If ``keys`` is given and the backend cannot filter.
            AbeError: What ended the stream, if the broker refused it for good.
        """
        if self._run is not None:
            if self._run.handler == handler:
                return
            raise RuntimeError(
                "this consumer is already running with another handler; "
                "call shutdown() first, or create a second consumer"
            )
        if self._stopped:
            self._stopped = False
            return
        self._announce()
        stream = open_stream(self.backend, group=self.group, keys=self.keys)
        self._run = _Run(self, handler, stream)
        try:
            await self._run.work()
        finally:
            self._run = None

    async def shutdown(self) -> None:
        """Stop taking messages and return once those in flight are settled.

        Handlers in flight get ``drain_timeout`` seconds to finish; then they are cancelled and
        their messages released. A sync handler cannot be cancelled: its message comes back when
        the lease lapses. Safe to call twice, before `run` (which then returns at once), and from
        the handler (it then returns without waiting for that handler).
        """
        if self._run is None:
            self._stopped = True
            return
        await self._run.drain()

    def _announce(self) -> None:
        can = capabilities_of(self.backend)
        if not can.reject and self.dead_letter_key is None:
            logger.warning(
                "backend %s has no dead letters and no dead_letter_key is given: a message that"
                " fails %d times will be logged as an error and dropped",
                self._name,
                self.retry.max_attempts,
                extra={"backend": self._name, "group": self.group},
            )
        if can.redelivery == "none" and self.concurrency > 1:
            logger.warning(
                "backend %s declares no redelivery: up to %d messages in flight may be lost if"
                " this process dies",
                self._name,
                self.concurrency,
                extra={"backend": self._name, "group": self.group},
            )


class _Run:
    """One call of `AsyncLoopConsumer.run`: its stream, its workers, its verdicts."""

    def __init__(
        self, consumer: AsyncLoopConsumer, handler: EventHandlerFunc, stream: MessageStream
    ) -> None:
        self.handler = handler
        self._consumer = consumer
        self._stream = stream
        self._can = capabilities_of(consumer.backend)
        self._threads = DaemonThreads("abe-handler")
        self._handle = self._adapt(handler)
        self._turn = asyncio.Lock()
        self._stopping = asyncio.Event()
        self._done = asyncio.Event()
        self._workers: set[asyncio.Task[None]] = set()
        self._in_thread: set[asyncio.Task[None]] = set()
        self._busy: dict[str, deque[Message]] = {}
        self._own_dead: Counter[str] = Counter()

    # -- life ------------------------------------------------------------------------------

    async def work(self) -> None:
        try:
            async with self._stream:
                try:
                    async with asyncio.TaskGroup() as group:
                        for n in range(self._consumer.concurrency):
                            task = group.create_task(self._worker(), name=f"abe-handler-{n}")
                            self._workers.add(task)
                except* Exception as errors:
                    raise _first(errors) from None
        finally:
            self._threads.close()
            self._done.set()

    async def drain(self) -> None:
        self._stopping.set()
        self._stream.stop()
        current = asyncio.current_task()
        others = [task for task in self._workers if task is not current and not task.done()]
        if others:
            _, late = await asyncio.wait(others, timeout=self._consumer.drain_timeout)
            for task in late:
                task.cancel()
        if current not in self._workers:
            await self._done.wait()

    async def _worker(self) -> None:
        try:
            while (message := await self._next()) is not None:
                await self._process(message)
        except asyncio.CancelledError:
            # Cancelled by drain(): the message is settled, so this worker is simply done.
            if not self._stopping.is_set():
                raise

    # -- taking ----------------------------------------------------------------------------

    async def _next(self) -> Message | None:
        """Return the next message that may be handled now; ``None`` at the end."""
        while True:
            async with self._turn:
                message = await anext(self._stream, None)
            if message is None:
                return None
            message.detach()
            if not await self._refuse(message) and not self._queue_behind(message):
                return message

    async def _refuse(self, message: Message) -> bool:
        """Settle what must not reach the handler."""
        consumer = self._consumer
        if consumer.dead_letter_key is not None and self._is_own_dead(message):
            await message.ack()
            return True
        if message.attempt > 2 * consumer.retry.max_attempts:
            reason = f"delivered {message.attempt} times without a verdict; not handled again"
            await self._give_up(message, reason)
            return True
        return False

    def _is_own_dead(self, message: Message) -> bool:
        if message.key is not None:
            return message.key == self._consumer.dead_letter_key
        # A plain backend tells no key; what this consumer published there is known by its text.
        body = encode_payload(message) if self._own_dead else ""
        if not self._own_dead.get(body):
            return False
        self._own_dead -= Counter([body])
        return True

    def _queue_behind(self, message: Message) -> bool:
        """Where ordering is per key, let a message wait for the one of its key being handled."""
        if self._can.ordering != "key" or message.key is None:
            return False
        waiting = self._busy.get(message.key)
        if waiting is None:
            self._busy[message.key] = deque()
            return False
        waiting.append(message)
        return True

    # -- handling --------------------------------------------------------------------------

    async def _process(self, message: Message | None) -> None:
        """Handle a message, then those of its key that had to wait for it."""
        while message is not None:
            key = message.key
            await self._attempt(message)
            waiting = self._busy.get(key) if key is not None else None
            if waiting is None:
                return
            failed = message.outcome is not None and message.outcome in ("nack", "release")
            if failed or self._stopping.is_set():
                while waiting:
                    await _settle_quietly(waiting.popleft().release)
            message = waiting.popleft() if waiting else None
            if message is None and key is not None:
                del self._busy[key]

    async def _attempt(self, message: Message) -> None:
        """Run the handler until there is a verdict, and settle accordingly."""
        consumer = self._consumer
        consumer.in_flight += 1
        try:
            while True:
                try:
                    await self._handle(message)
                except asyncio.CancelledError as error:
                    if _being_cancelled():
                        await self._release_unless_in_thread(message)
                        raise
                    again = await self._failure(message, error)
                except Exception as error:
                    again = await self._failure(message, error)
                else:
                    await message.ack()
                    consumer.processed += 1
                    consumer._finished.append(time.monotonic())
                    return
                if not again:
                    return
        finally:
            consumer.in_flight -= 1

    async def _failure(self, message: Message, error: BaseException) -> bool:
        """Settle a failed message; True if it is to be tried again in process."""
        consumer = self._consumer
        consumer.failed += 1
        consumer.last_error = error
        if message.outcome is not None:
            self._log_failure(message, error, "the handler had settled it")
            return False
        if isinstance(error, Reject):
            self._log(logging.INFO, f"rejected by the handler: {error.reason}", message)
            await self._give_up(message, error.reason)
            return False
        if message.attempt >= consumer.retry.max_attempts:
            self._log_failure(message, error, "no attempts left")
            await self._give_up(message, reason_for(error))
            return False
        delay = error.delay if isinstance(error, Retry) else None
        if delay is None:
            delay = consumer.retry.delay(message.attempt)
        consumer.retried += 1
        self._log_failure(message, error, f"trying again in {delay:.3g} s")
        if self._can.nack_delay and self._can.attempts != "none":
            await message.nack(min(delay, self._can.nack_delay))
            return False
        return await self._wait_in_process(message, delay)

    async def _wait_in_process(self, message: Message, delay: float) -> bool:
        """Wait ``delay`` seconds while the stream keeps the lease; False if told to stop."""
        try:
            async with asyncio.timeout(delay):
                await self._stopping.wait()
        except TimeoutError:
            message.attempt += 1
            return True
        except asyncio.CancelledError:
            await _settle_quietly(message.release)
            raise
        await _settle_quietly(message.release)
        return False

    async def _give_up(self, message: Message, reason: str) -> None:
        consumer = self._consumer
        consumer.dead += 1
        if self._can.reject:
            await message.reject(reason)
            return
        if consumer.dead_letter_key is not None:
            await self._publish_dead(message, reason)
        else:
            self._log(logging.ERROR, "dropped: " + reason.partition("\n")[0], message)
        await message.ack()

    async def _publish_dead(self, message: Message, reason: str) -> None:
        consumer = self._consumer
        key = consumer.dead_letter_key
        assert key is not None
        extras: dict[str, Any] = {}
        if self._can.headers:
            extras["headers"] = dead_headers(
                message.headers,
                reason=reason,
                attempts=message.attempt,
                id=message.id,
                key=message.key,
            )
        if message.key is None:
            self._own_dead[encode_payload(message)] += 1
        await consumer.backend.publish(key, dict(message), **extras)

    async def _release_unless_in_thread(self, message: Message) -> None:
        task = asyncio.current_task()
        if task not in self._in_thread:
            await _settle_quietly(message.release)

    # -- the handler -----------------------------------------------------------------------

    def _adapt(self, handler: EventHandlerFunc) -> Handler:
        if isinstance(handler, EventHandlerProtocol):
            return handler.handle_event
        if not callable(handler):
            raise TypeError(
                f"handler is {type(handler).__name__}; it must be a function or have handle_event()"
            )
        function: Callable[[Any], Any] = handler
        if any(map(inspect.iscoroutinefunction, (function, type(function).__call__))):
            return function
        return self._threaded(function)

    def _threaded(self, handler: Callable[[Any], Any]) -> Handler:
        loop = asyncio.get_running_loop()

        async def call(message: Message) -> object:
            blocking = SyncMessage(
                message, lambda coro: asyncio.run_coroutine_threadsafe(coro, loop).result()
            )
            task = asyncio.current_task()
            assert task is not None
            self._in_thread.add(task)
            try:
                result = await self._threads.run(handler, blocking)
            finally:
                if not _being_cancelled():  # cancelled: the thread still has the message
                    self._in_thread.discard(task)
            if inspect.isawaitable(result):
                result = await result
            return result

        return call

    def _log_failure(self, message: Message, error: BaseException, what_next: str) -> None:
        if isinstance(error, Retry):
            self._log(logging.INFO, f"the handler asks for a retry; {what_next}", message)
        else:
            self._log(logging.WARNING, f"handler failed; {what_next}", message, error)

    def _log(
        self, level: int, text: str, message: Message, error: BaseException | None = None
    ) -> None:
        fields = {
            "backend": self._consumer._name,
            "group": self._consumer.group,
            "key": message.key,
            "id": message.id,
            "attempt": message.attempt,
        }
        logger.log(
            level,
            "%s (backend=%s group=%s key=%s id=%s attempt=%s)",
            text,
            *fields.values(),
            extra=fields,
            exc_info=error,
        )


async def _settle_quietly(method: Callable[[], Awaitable[bool]]) -> None:
    """Release where the backend can; elsewhere the lease lapses."""
    try:
        await method()
    except NotImplementedError:
        return


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _first(errors: BaseExceptionGroup[Exception]) -> BaseException:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
