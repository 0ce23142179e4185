"""`AsyncLoopConsumer`: runs a handler over a backend's messages, with a policy for failures."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

from abe.backends.message_queue.base import (
    Capabilities,
    Message,
    Outcome,
    open_stream,
    validate_group,
    validate_key,
)
from abe.backends.message_queue.base.dead_letters import reason_for
from abe.backends.message_queue.base.log import log_message, message_context
from abe.backends.message_queue.base.subscription.plain import backend_name, check_backend
from abe.backends.message_queue.handling.dead_letters import DeadLetterKey
from abe.backends.message_queue.handling.handlers import StillRunning, adapt_handler
from abe.backends.message_queue.handling.retry import RetryPolicy
from abe.backends.message_queue.handling.threads import DaemonThreads
from abe.errors import (
    ConfigurationError,
    LoopError,
    PublishError,
    Reject,
    Retry,
)
from abe.types import (
    ConsumerGroup,
    EventHandlerFunc,
    MessageQueueBackendProtocol,
)

__all__ = ["AsyncLoopConsumer", "RetryPolicy"]

logger = logging.getLogger(__name__)

RATE_WINDOW = 10.0
"""Seconds over which `AsyncLoopConsumer.rate` is measured."""

_OWN_MODULES = {__name__, adapt_handler.__module__, DaemonThreads.__module__}

_handling: ContextVar[object] = ContextVar("_handling", default=None)
"""Identifies one call of a handler to whatever runs in its context: tasks, threads."""


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
        check_backend(backend)
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
        self._ended = False
        self._stop_early = False

    @property
    def rate(self) -> float:
        """Messages handled per second, over the last ten seconds."""
        now = time.monotonic()
        recent = 0
        oldest = now
        # A copy, because handlers go on while another thread reads this.
        for moment in reversed(self._finished.copy()):
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
            TypeError: If ``handler`` cannot handle a message.
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
        if self._stop_early:
            self._stop_early = False
            return
        run = _Run(self, handler)
        self._announce(run.can)
        self._run, self._ended = run, False
        try:
            await run.work()
            self._ended = True
        finally:
            self._run = None

    async def shutdown(self) -> None:
        """Stop taking messages and return once those in flight are settled.

        Handlers in flight get ``drain_timeout`` seconds to finish; then they are cancelled and
        their messages released. A sync handler cannot be cancelled: its message comes back when
        the lease lapses. Safe to call twice, before `run` (which then returns at once), and from
        the handler (it then returns without waiting for that handler).

        Raises:
            LoopError: If `run` runs on another event loop.
        """
        if self._run is not None:
            await self._run.drain()
        elif not self._ended:
            # run() is yet to begin, or failed and is about to be called again.
            self._stop_early = True

    def _announce(self, can: Capabilities) -> None:
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

    def __init__(self, consumer: AsyncLoopConsumer, handler: EventHandlerFunc) -> None:
        self.handler = handler
        self._consumer = consumer
        self._threads = DaemonThreads("abe-handler")
        self._handle = adapt_handler(handler, self._threads)
        self._stopping = asyncio.Event()
        self._done = asyncio.Event()
        self._workers: set[asyncio.Task[None]] = set()
        self._interrupted: set[asyncio.Task[None]] = set()
        self._calls: dict[asyncio.Task[Any] | None, object] = {}
        """What each worker is handling, as found in the context of the handler."""
        self._busy: dict[str | None, deque[Message]] = {}
        """What waits for the message of its key that is being handled."""
        self._dead_key: DeadLetterKey | None = None
        if consumer.dead_letter_key is not None:
            self._dead_key = DeadLetterKey(consumer.backend, consumer.dead_letter_key)
        runner = asyncio.current_task()
        assert runner is not None
        self._runner = runner
        self._cancelled_before = runner.cancelling()
        self._stream = open_stream(consumer.backend, group=consumer.group, keys=consumer.keys)
        self.can = self._stream.capabilities

    # -- life ------------------------------------------------------------------------------

    async def work(self) -> None:
        try:
            async with self._stream:
                await self._run_workers()
        finally:
            self._threads.close()
            self._done.set()

    async def _run_workers(self) -> None:
        for n in range(self._consumer.concurrency):
            self._workers.add(asyncio.create_task(self._worker(), name=f"abe-handler-{n}"))
        try:
            await asyncio.wait(self._workers, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            # Whatever ends this early, the workers have to give back what they hold.
            self._interrupt(self._workers)
            while not all(task.done() for task in self._workers):
                await asyncio.wait(self._workers)
            errors = [task.exception() for task in self._workers if not task.cancelled()]
        for error in errors:
            if error is not None:
                raise error
        if any(task.cancelled() for task in self._workers - self._interrupted):
            raise asyncio.CancelledError("somebody cancelled the tasks of this consumer")

    async def drain(self) -> None:
        if asyncio.get_running_loop() is not self._runner.get_loop():
            raise LoopError(
                "this consumer runs on another event loop; await shutdown() there, from a thread"
                " with asyncio.run_coroutine_threadsafe(consumer.shutdown(), loop)"
            )
        self._stopping.set()
        self._stream.stop()
        call = _handling.get()
        inside = [task for task, running in self._calls.items() if running is call]
        others = [task for task in self._workers if task not in inside and not task.done()]
        if others:
            _, late = await asyncio.wait(others, timeout=self._consumer.drain_timeout)
            self._interrupt(late)
        if not inside:
            await self._done.wait()

    def _interrupt(self, workers: Iterable[asyncio.Task[None]]) -> None:
        for task in workers:
            if not task.done():
                self._interrupted.add(task)
                task.cancel()

    def _is_interrupted(self) -> bool:
        """Whether this consumer, or who cancels `run`, wants the running worker to end.

        Counting the worker's own cancellations would not tell: handlers, and libraries that they
        use, cancel the task they run in for reasons of their own.
        """
        stopped = asyncio.current_task() in self._interrupted
        return stopped or self._runner.cancelling() > self._cancelled_before

    async def _worker(self) -> None:
        while not self._is_interrupted():
            message = await self._next()
            if message is None:
                return
            await self._process(message)

    # -- taking ----------------------------------------------------------------------------

    async def _next(self) -> Message | None:
        """Return the next message that may be handled now; ``None`` at the end."""
        while True:
            received = await self._stream.receive()
            if not received:
                return None
            (message,) = received
            try:
                refused = await self._refuse(message)
            except BaseException:
                await _release(message)
                raise
            if not refused and not self._queue_behind(message):
                return message

    async def _refuse(self, message: Message) -> bool:
        """Settle what must not reach the handler."""
        consumer = self._consumer
        if self._dead_key is not None and self._dead_key.holds(message):
            await message.ack()
            return True
        if message.attempt > 2 * consumer.retry.max_attempts:
            reason = f"delivered {message.attempt} times without a verdict; not handled again"
            self._log(logging.ERROR, reason, message)
            await self._give_up(message, reason)
            return True
        return False

    def _queue_behind(self, message: Message) -> bool:
        """Where ordering is per key, let a message wait for the one of its key being handled."""
        if self.can.ordering != "key" or message.key is None:
            return False
        waiting = self._busy.get(message.key)
        if waiting is None:
            self._busy[message.key] = deque()
            return False
        waiting.append(message)
        return True

    # -- handling --------------------------------------------------------------------------

    async def _process(self, message: Message) -> None:
        """Handle a message, then those of its key that had to wait for it."""
        key = message.key
        waiting = self._busy.get(key)
        if waiting is None:
            await self._attempt(message)
            return
        waiting.appendleft(message)
        try:
            while waiting:
                current = waiting.popleft()
                await self._attempt(current)
                if current.outcome in (None, Outcome.NACK, Outcome.RELEASE):
                    break
                if self._stopping.is_set() or self._is_interrupted():
                    break
        finally:
            # An earlier one comes back, or nothing more is to be done: they come after it.
            del self._busy[key]
            for message in waiting:
                await _release(message)

    async def _attempt(self, message: Message) -> None:
        """Run the handler until there is a verdict, and settle accordingly."""
        task = asyncio.current_task()
        self._calls[task] = call = object()
        _handling.set(call)
        self._consumer.in_flight += 1
        try:
            while await self._try(message):
                pass
        except StillRunning:
            raise  # with the message, which comes back when its lease lapses
        except BaseException:
            await _release(message)
            raise
        finally:
            self._consumer.in_flight -= 1
            del self._calls[task]

    async def _try(self, message: Message) -> bool:
        """Run the handler once; True if it is to be run again."""
        consumer = self._consumer
        try:
            with message_context(message, backend=consumer._name, group=consumer.group):
                await self._handle(message)
        except asyncio.CancelledError as error:
            if self._is_interrupted():
                raise
            _forget_cancellations()
            return await self._failure(message, error)
        except Exception as error:  # handlers may raise anything
            return await self._failure(message, error)
        if await message.ack():
            self._consumer.processed += 1
            self._consumer._finished.append(time.monotonic())
        return False

    async def _failure(self, message: Message, error: BaseException) -> bool:
        """Settle a failed message; True if it is to be tried again in process."""
        consumer = self._consumer
        consumer.failed += 1
        consumer.last_error = _from_handler(error)
        if message.outcome is not None:
            lost = message.outcome is Outcome.LOST
            self._log_failure(message, error, "lease lost" if lost else "the handler settled it")
            return False
        if isinstance(error, Reject):
            self._log(logging.INFO, f"rejected by the handler: {error.reason}", message)
            await self._give_up(message, error.reason)
            return False
        if message.attempt >= consumer.retry.max_attempts:
            self._log(logging.ERROR, "handler failed; no attempts left", message, error)
            await self._give_up(message, reason_for(error))
            return False
        delay = error.delay if isinstance(error, Retry) else None
        if delay is None or not delay >= 0:
            delay = consumer.retry.delay(message.attempt)
        consumer.retried += 1
        self._log_failure(message, error, f"trying again in {delay:.3g} s")
        if self.can.nack_delay and self.can.attempts != "none":
            await message.nack(min(delay, self.can.nack_delay))
            return False
        if await self._stopped_within(delay):
            await _release(message)
            return False
        message.attempt += 1
        return message.outcome is None  # else its lease was lost, and it comes again

    async def _stopped_within(self, delay: float) -> bool:
        """Wait ``delay`` seconds, while the stream keeps leases; True if told to stop."""
        try:
            async with asyncio.timeout(delay):
                await self._stopping.wait()
        except TimeoutError:
            return False
        return True

    async def _give_up(self, message: Message, reason: str) -> None:
        consumer = self._consumer
        if self.can.reject:
            await message.reject(reason)
        elif self._dead_key is None:
            self._log(logging.ERROR, "dropped: " + reason.partition("\n")[0], message)
            await message.ack()
        elif await self._publish_dead(self._dead_key, message, reason):
            await message.ack()
        else:
            await _release(message)
            return
        consumer.dead += 1

    async def _publish_dead(self, dead: DeadLetterKey, message: Message, reason: str) -> bool:
        """Publish under the dead letter key, while the broker is away again and again.

        Returns:
            False if told to stop before that.
        """
        failures = 0
        while True:
            try:
                await dead.publish(message, reason)
            except (ConnectionError, TimeoutError, PublishError) as error:
                if isinstance(error, PublishError) and not error.retryable:
                    raise
                failures += 1
                delay = self._consumer.retry.delay(failures)
                what = f"cannot publish to {dead.key!r}; trying again in {delay:.3g} s"
                self._log(logging.WARNING, what, message, error)
                if await self._stopped_within(delay):
                    return False
            else:
                return True

    def _log_failure(self, message: Message, error: BaseException, what_next: str) -> None:
        if isinstance(error, Retry):
            self._log(logging.INFO, f"the handler asks for a retry; {what_next}", message)
        else:
            self._log(logging.WARNING, f"handler failed; {what_next}", message, error)

    def _log(
        self, level: int, text: str, message: Message, error: BaseException | None = None
    ) -> None:
        consumer = self._consumer
        log_message(
            logger, level, text, message, backend=consumer._name, group=consumer.group, error=error
        )


def _from_handler(error: BaseException) -> BaseException:
    """Let the traceback of ``error`` begin in the handler, if the handler was reached."""
    place = error.__traceback__
    while place is not None and place.tb_frame.f_globals.get("__name__") in _OWN_MODULES:
        place = place.tb_next
    return error if place is None else error.with_traceback(place)


async def _release(message: Message) -> None:
    """Release what is not settled, where the backend can; elsewhere the lease lapses."""
    if message.outcome is None:
        with suppress(NotImplementedError):
            await message.release()


def _forget_cancellations() -> None:
    """What a handler did to its task must not confuse the next one's timeouts."""
    task = asyncio.current_task()
    while task is not None and task.cancelling():
        task.uncancel()
