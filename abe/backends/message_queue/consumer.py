"""`AsyncLoopConsumer`: runs a handler over a backend's messages, with a policy for failures."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from abe.backends.message_queue.base import (
    SUSPECT_ATTEMPT,
    Capabilities,
    Message,
    Outcome,
    backend_name,
    check_backend,
    open_stream,
    validate_group,
    validate_key,
)
from abe.backends.message_queue.base.log_records import Handling, handling, log
from abe.backends.message_queue.handling.counters import Counters
from abe.backends.message_queue.handling.dead_letters import DeadLetterKey
from abe.backends.message_queue.handling.handlers import StillRunning, adapt_handler
from abe.backends.message_queue.handling.retry import RetryPolicy
from abe.backends.message_queue.handling.threads import DaemonThreads
from abe.backends.message_queue.handling.verdicts import Verdicts, release
from abe.errors import ConfigurationError, LoopError
from abe.types import ConsumerGroup, EventHandlerFunc, MessageQueueBackendProtocol

__all__ = ["AsyncLoopConsumer", "RetryPolicy"]

logger = logging.getLogger(__name__)

_OWN_MODULES = {__name__, adapt_handler.__module__, DaemonThreads.__module__}


class AsyncLoopConsumer(Counters):
    """Runs a handler for each message of a group, and settles by what becomes of it.

    The handler returned: ack. It raised `abe.Reject`: dead letters. It raised `abe.Retry`, or
    anything else, `SystemExit` included: the message is redelivered later, until
    `RetryPolicy.max_attempts`; then it is rejected where the backend has dead letters, else
    published to ``dead_letter_key``, else logged as an error and dropped (announced by one warning
    when `run` starts). From its third attempt on a message is handled with nothing else in flight,
    and one that kills its process again and again is given up where the backend records that its
    handling has begun. Where the backend cannot delay a failed message, the consumer waits and
    tries again in process, keeping the lease. Works with any backend.

    Args:
        backend: Where messages come from.
        group: The consumer group.
        keys: Only keys that match one of these.
        concurrency: Maximum number of handlers at a time. Where the backend's ordering is per key,
            messages of one key are still handled one after the other.
        retry: What to do after a failure.
        dead_letter_key: Where exhausted messages are published if the backend has no dead
            letters; a key that this consumer does not receive.
        drain_timeout: Seconds that `shutdown` waits for handlers in flight.
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
        super().__init__()
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
        self._name = backend_name(backend)
        self._run: _Run | None = None
        self._ran = False
        self._stop_early = False

    async def run(self, handler: EventHandlerFunc) -> None:
        """Handle messages until `shutdown`, or until a plain backend's iterator ends.

        A second call with the same handler while running returns at once. Cancelling it releases
        the messages in flight.

        Args:
            handler: A sync function (run in a worker thread, given a `SyncMessage`), an async
                function, or an object with ``handle_event``.

        Raises:
            RuntimeError: If it is running with another handler.
            TypeError: If ``handler`` cannot handle a message.
            UnsupportedError: If ``keys`` is given and the backend cannot filter.
            ConfigurationError: If this group would receive its own dead letters under
                ``dead_letter_key``.
            AbeError: What ended the stream, if the broker refused it permanently.
        """
        if self._run is not None:
            if self._run.handler == handler:
                return
            raise RuntimeError(
                "this consumer is already running with another handler; "
                "call shutdown() first, or create a second consumer"
            )
        self._ran = True
        if self._stop_early:
            self._stop_early = False
            return
        run = _Run(self, handler)
        self._announce(run.can)
        self._run = run
        try:
            await run.work()
        finally:
            self._run = None

    async def shutdown(self) -> None:
        """Stop taking messages and return once those in flight are settled.

        Handlers in flight get ``drain_timeout`` seconds to finish; then they are cancelled and
        their messages released. A sync handler cannot be cancelled: its message is redelivered
        when the lease lapses. Safe to call twice, before the first `run` (which then returns at
        once), after a run, and from the handler (it then returns without waiting for that
        handler).

        Raises:
            LoopError: If `run` runs on another event loop.
        """
        if self._run is not None:
            await self._run.drain()
        elif not self._ran:
            self._stop_early = True

    def _announce(self, can: Capabilities) -> None:
        if not can.reject and self.dead_letter_key is None:
            text = (
                "backend %s has no dead letters and no dead_letter_key is given: a message that"
                " fails %d times will be logged as an error and dropped"
            )
            self._warn(text, self.retry.max_attempts)
        if can.redelivery == "none" and self.concurrency > 1:
            text = (
                "backend %s declares no redelivery: up to %d messages in flight may be lost if"
                " this process dies"
            )
            self._warn(text, self.concurrency)

    def _warn(self, text: str, number: int) -> None:
        fields = {"backend": self._name, "group": self.group}
        log(logger, logging.WARNING, text, self._name, number, extra=fields)


class _Run:
    """One call of `AsyncLoopConsumer.run`: its stream and its workers."""

    def __init__(self, consumer: AsyncLoopConsumer, handler: EventHandlerFunc) -> None:
        self.handler = handler
        self._consumer = consumer
        self._threads = DaemonThreads("abe-handler")
        self._handle = adapt_handler(handler, self._threads)
        self._stopping = asyncio.Event()
        self._done = asyncio.Event()
        self._workers: set[asyncio.Task[None]] = set()
        self._interrupted: set[asyncio.Task[None]] = set()
        self._calls: dict[asyncio.Task[Any] | None, Handling] = {}
        """What each worker is handling, as found in the context of the handler."""
        self._draining: set[Handling | None] = set()
        """Calls of the handler that wait for `drain`, which must not wait for them."""
        self._drains: set[asyncio.Future[None]] = set()
        self._busy: dict[str, deque[Message]] = {}
        """Where ordering is per key: messages that wait for the one of theirs being handled."""
        self._dead_key: DeadLetterKey | None = None
        if consumer.dead_letter_key is not None:
            self._dead_key = DeadLetterKey(consumer.backend, consumer.dead_letter_key)
            self._dead_key.check(consumer.group, consumer.keys)
        runner = asyncio.current_task()
        assert runner is not None
        self._runner = runner
        self._cancelled_before = runner.cancelling()
        self._stream = open_stream(consumer.backend, group=consumer.group, keys=consumer.keys)
        self.can = self._stream.capabilities
        self._verdicts = Verdicts(
            self.can,
            consumer.retry,
            self._dead_key,
            consumer,
            backend=consumer._name,
            group=consumer.group,
            stopped_within=self._stopped_within,
        )

    # -- life ------------------------------------------------------------------------------

    async def work(self) -> None:
        try:
            async with self._stream:
                self._stream.isolate_suspects()
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
            raise asyncio.CancelledError("another task cancelled the tasks of this consumer")

    async def drain(self) -> None:
        loop = asyncio.get_running_loop()
        if loop is not self._runner.get_loop():
            raise LoopError(
                "this consumer runs on another event loop; await shutdown() there, from a thread"
                " with asyncio.run_coroutine_threadsafe(consumer.shutdown(), loop)"
            )
        self._stopping.set()
        self._stream.stop()
        call = handling.get()
        inside = call in self._calls.values()
        if inside:
            self._draining.add(call)
            for other in self._drains:
                if not other.done():
                    other.set_result(None)
        deadline = loop.time() + self._consumer.drain_timeout
        while late := [task for task in self._workers if not task.done() and self._owes(task)]:
            left = deadline - loop.time()
            if left <= 0:
                self._interrupt(late)
                break
            news = loop.create_future()
            self._drains.add(news)
            await asyncio.wait([*late, news], timeout=left, return_when=asyncio.FIRST_COMPLETED)
            self._drains.discard(news)
        if not inside:
            await self._done.wait()

    def _owes(self, task: asyncio.Task[None]) -> bool:
        return self._calls.get(task) not in self._draining

    def _interrupt(self, workers: Iterable[asyncio.Task[None]]) -> None:
        for task in workers:
            if not task.done():
                self._interrupted.add(task)
                task.cancel()

    def _is_interrupted(self) -> bool:
        """Whether this consumer, or the canceller of `run`, wants the running worker to end.

        Counting the worker's own cancellations would not tell: handlers, and libraries that they
        use, cancel the task they run in for reasons of their own.
        """
        stopped = asyncio.current_task() in self._interrupted
        return stopped or self._runner.cancelling() > self._cancelled_before

    async def _worker(self) -> None:
        while not self._is_interrupted():
            received = await self._stream.receive()
            if not received:
                return
            (message,) = received
            if self._dead_key is not None:
                self._dead_key.refuse_own(message)
            if self.can.ordering != "key" or message.key is None:
                await self._attempt(message)
            elif message.key in self._busy:
                self._busy[message.key].append(message)
            else:
                await self._process(message.key, message)

    # -- handling --------------------------------------------------------------------------

    async def _process(self, key: str, message: Message) -> None:
        """Handle a message, then those of its key that had to wait for it."""
        waiting = self._busy[key] = deque([message])
        try:
            while waiting:
                current = waiting.popleft()
                await self._attempt(current)
                if current.outcome in (None, Outcome.NACK, Outcome.RELEASE):
                    break
                if self._stopping.is_set() or self._is_interrupted():
                    break
        finally:
            # An earlier one is redelivered, or nothing more is to be done: they come after it.
            del self._busy[key]
            for message in waiting:
                await release(message)

    async def _attempt(self, message: Message) -> None:
        task, consumer = asyncio.current_task(), self._consumer
        self._calls[task] = call = Handling(message, consumer._name, consumer.group)
        handling.set(call)
        self._consumer.in_flight += 1
        try:
            if message.attempt >= SUSPECT_ATTEMPT and await self._has_killed(message):
                return
            while True:
                needed = self._verdicts.needs_original
                restore = self._verdicts.preserve(message) if needed else None
                error = await self._call(message)
                if error is None:
                    if await message.ack():
                        self._consumer.processed += 1
                        self._consumer._finished.append(time.monotonic())
                    return
                if not await self._fail(message, error, restore):
                    return
        except StillRunning:
            raise  # with the message, which is redelivered when its lease lapses
        except BaseException:
            await release(message)
            raise
        finally:
            self._consumer.in_flight -= 1
            del self._calls[task]

    async def _has_killed(self, message: Message) -> bool:
        """Give up a message whose handling began again and again without a verdict."""
        begun = await self._stream.begin(message)
        if begun < self._consumer.retry.max_attempts:
            return False
        await self._verdicts.give_up_unfinished(message, begun)
        return True

    async def _call(self, message: Message) -> BaseException | None:
        try:
            await self._handle(message)
        except asyncio.CancelledError as error:
            if self._is_interrupted():
                raise
            _forget_cancellations()
            return error
        except GeneratorExit:  # the event loop is gone
            raise
        except BaseException as error:  # SystemExit, too, is a handler's failure
            return error
        return None

    async def _fail(self, message: Message, error: BaseException, restore: Any) -> bool:
        """Record a failure; True if the message is to be handled again in process."""
        self._consumer.failed += 1
        self._consumer.last_error = _from_handler(error)
        again = await self._verdicts.failure(message, error, restore)
        if isinstance(error, KeyboardInterrupt):
            raise error  # a Ctrl-C that fell into the handler: the verdict is recorded
        return again

    async def _stopped_within(self, delay: float) -> bool:
        """Wait ``delay`` seconds, while the stream keeps leases; True if told to stop."""
        try:
            async with asyncio.timeout(delay):
                await self._stopping.wait()
        except TimeoutError:
            return False
        return True


def _from_handler(error: BaseException) -> BaseException:
    """Let the traceback of ``error`` begin in the handler, if the handler was reached."""
    entry = error.__traceback__
    while entry is not None and entry.tb_frame.f_globals.get("__name__") in _OWN_MODULES:
        entry = entry.tb_next
    return error if entry is None else error.with_traceback(entry)


def _forget_cancellations() -> None:
    """Undo a handler's cancellations of its task, which would confuse the next one's timeouts."""
    task = asyncio.current_task()
    while task is not None and task.cancelling():
        task.uncancel()
