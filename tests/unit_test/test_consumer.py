"""`AsyncLoopConsumer`: what becomes of a message by what its handler does."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
import math
import operator
import random
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self, TypeVar

import pytest

from abe.backends.message_queue import consumer as module
from abe.backends.message_queue.base import (
    Capabilities,
    EventConsumer,
    Message,
    MessageStream,
    Outcome,
    SyncMessage,
)
from abe.backends.message_queue.consumer import AsyncLoopConsumer, RetryPolicy
from abe.backends.message_queue.service.memory import MemoryBackend
from abe.errors import (
    AbeError,
    ConfigurationError,
    ConnectionLostError,
    InvalidKeyError,
    LoopError,
    PublishError,
    Reject,
    Retry,
    UnsupportedError,
)

if TYPE_CHECKING:
    from tests.unit_test.conftest import Broker, Toolbox, VirtualRun

T = TypeVar("T")

FAST = RetryPolicy(max_attempts=3, base=0.0)
STEADY = RetryPolicy(max_attempts=4, base=1.0, factor=2.0, max_delay=3.0, jitter=False)


class Scripted:
    """A first-party backend over a scripted broker."""

    name = "scripted"

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.opened: list[dict[str, Any]] = []
        self.published: list[tuple[str, dict[str, Any], dict[str, Any]]] = []
        self.refusals: deque[BaseException] = deque()

    @property
    def capabilities(self) -> Capabilities:
        return self.broker.capabilities

    @classmethod
    def from_env(cls) -> Self:
        raise NotImplementedError

    async def publish(self, key: str, payload: dict[str, Any], **extras: Any) -> None:
        await asyncio.sleep(0)
        if self.refusals:
            raise self.refusals.popleft()
        self.published.append((key, payload, extras))
        (record,) = self.broker.publish(1, key)
        record.payload = payload

    def consume(self, **options: Any) -> MessageStream:
        self.opened.append(options)
        return self.broker.stream()


class Plain:
    """A plain backend: the iterator yields dicts, and resuming it acks."""

    def __init__(self, *payloads: dict[str, Any], ends: bool = False) -> None:
        self.waiting = deque(payloads)
        self.acked: list[dict[str, Any]] = []
        self.opened: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self.changed = asyncio.Event()
        self.ends = ends
        self.log: list[tuple[str, Any]] = []

    @classmethod
    def from_env(cls) -> Self:
        raise NotImplementedError

    async def publish(self, *args: Any) -> None:
        key, payload = args
        self.log.append((key, payload))
        self.waiting.append(payload)
        self.changed.set()

    def consume(self, *args: Any, **options: Any) -> AsyncIterator[dict[str, Any]]:
        self.opened.append((args, options))
        return self._iterate()

    async def _iterate(self) -> AsyncIterator[dict[str, Any]]:
        while True:
            while not self.waiting:
                if self.ends:
                    return
                self.changed.clear()
                await self.changed.wait()
            payload = self.waiting.popleft()
            try:
                yield dict(payload)
            except BaseException:
                self.waiting.appendleft(payload)
                raise
            self.acked.append(payload)


_number = 0


def memory(**settings: Any) -> MemoryBackend:
    global _number
    _number += 1
    return MemoryBackend(f"consumer.{_number}", **settings)


def real(main: Coroutine[Any, Any, T]) -> T:
    """Run a test that needs real threads, in real time."""

    async def limited() -> T:
        async with asyncio.timeout(10):
            return await main

    return asyncio.run(limited())


async def until(condition: Callable[[], object], step: float = 0.01) -> None:
    """Let other tasks run until ``condition`` holds."""
    while not condition():  # noqa: ASYNC110 - there is no event inside the code under test
        await asyncio.sleep(step)


class Recorder:
    """A handler that remembers what it was given, and does as told.

    Args:
        script: What to do at each call; an exception is raised, a number is slept.
    """

    def __init__(self, *script: Any) -> None:
        self.script = deque(script)
        self.messages: list[Message] = []
        self.attempts: list[int] = []
        self.times: list[float] = []

    async def __call__(self, message: Message) -> None:
        self.messages.append(message)
        self.attempts.append(message.attempt)
        self.times.append(asyncio.get_running_loop().time())
        if self.script:
            step = self.script.popleft()
            if isinstance(step, BaseException):
                raise step
            await asyncio.sleep(step)

    @property
    def numbers(self) -> list[int]:
        return [message["n"] for message in self.messages]

    @property
    def gaps(self) -> list[float]:
        return [b - a for a, b in zip(self.times, self.times[1:], strict=False)]


async def settled(
    consumer: AsyncLoopConsumer, handler: Any, condition: Callable[[], object], step: float = 0.01
) -> None:
    """Run ``consumer`` until ``condition`` holds, then shut it down."""
    task = asyncio.create_task(consumer.run(handler))
    waiter = asyncio.create_task(until(condition, step))
    await asyncio.wait([task, waiter], return_when=asyncio.FIRST_COMPLETED)
    waiter.cancel()
    assert condition()
    await consumer.shutdown()
    await task


# -- handlers --------------------------------------------------------------------------------

seen: list[tuple[type, int]] = []


def note(message: Any) -> None:
    assert message == {"n": 1}
    seen.append((type(message), threading.get_ident()))


def sync_handler(message: Any) -> None:
    note(message)


async def async_handler(message: Any, extra: object = None) -> None:
    note(message)


def generator(message: Any) -> Any:
    yield message


async def async_generator(message: Any) -> Any:
    yield message


def with_database(function: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(function)
    def call(message: Any) -> None:
        function(message, "database")

    return call


@with_database
def decorated(message: Any, database: str) -> None:
    assert database == "database"
    note(message)


class AsyncObject:
    async def handle_event(self, event: Any) -> None:
        note(event)

    async def method(self, message: Any) -> None:
        note(message)


class SyncObject:
    def handle_event(self, event: Any) -> None:
        note(event)

    def method(self, message: Any) -> None:
        note(message)


class AsyncCallable:
    async def __call__(self, message: Any) -> None:
        note(message)


class SyncCallable:
    def __call__(self, message: Any) -> None:
        note(message)


@pytest.mark.parametrize(
    ("handler", "kind", "in_loop"),
    [
        (sync_handler, SyncMessage, False),
        (async_handler, Message, True),
        (AsyncObject(), Message, True),
        (SyncObject(), SyncMessage, False),
        (AsyncObject().method, Message, True),
        (SyncObject().method, SyncMessage, False),
        (AsyncCallable(), Message, True),
        (SyncCallable(), SyncMessage, False),
        (functools.partial(sync_handler), SyncMessage, False),
        (functools.partial(async_handler, extra=1), Message, True),
        (functools.partial(AsyncCallable()), SyncMessage, True),
        (lambda message: async_handler(message, 1), SyncMessage, True),
        (lambda message: sync_handler(message), SyncMessage, False),
        (decorated, SyncMessage, False),
    ],
    ids=[
        "function",
        "coroutine function",
        "handle_event",
        "sync handle_event",
        "method",
        "sync method",
        "async callable",
        "sync callable",
        "partial",
        "partial of coroutine function",
        "partial of async callable",
        "lambda that returns a coroutine",
        "lambda",
        "decorator that adds an argument",
    ],
)
def test_every_kind_of_handler(handler: Any, kind: type, in_loop: bool) -> None:
    async def main() -> None:
        async with memory() as backend:
            await backend.publish("k", {"n": 1})
            consumer = AsyncLoopConsumer(backend)
            seen.clear()
            await settled(consumer, handler, lambda: consumer.processed)
            assert consumer.failed == 0
            assert (await backend.stats()).entries == ()
        ((given, thread),) = seen
        assert given is kind
        assert (thread == threading.get_ident()) is in_loop

    real(main())


@pytest.mark.parametrize(
    ("handler", "text"),
    [
        (AsyncObject, "handler is the class AsyncObject; give an instance of it"),
        (SyncCallable, "handler is the class SyncCallable; give an instance of it"),
        (None, "handler is NoneType; it must be a function or have handle_event()"),
        ("f", "handler is str; it must be a function or have handle_event()"),
        (generator, "handler contains 'yield': calling it would not run any of it"),
        (async_generator, "handler contains 'yield': calling it would not run any of it"),
        (
            lambda: None,
            "handler is called with one argument, the message: too many positional arguments",
        ),
        (
            AsyncObject.method,
            "handler is called with one argument, the message: missing a required argument:"
            " 'message'",
        ),
    ],
)
def test_what_cannot_handle_is_refused_before_anything_is_opened(
    handler: Any, text: str, broker: Broker, run: VirtualRun
) -> None:
    async def main() -> None:
        backend = Scripted(broker)
        consumer = AsyncLoopConsumer(backend)
        with pytest.raises(TypeError) as caught:
            await consumer.run(handler)
        assert str(caught.value) == text
        assert backend.opened == []

    run(main())


def test_a_sync_handler_sees_the_callers_context_and_may_settle_itself() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    outcomes: list[Any] = []

    def handler(message: SyncMessage) -> None:
        outcomes.extend((variable.get(), message.reject("by hand"), message.outcome))

    async def main() -> None:
        variable.set("seen")
        async with memory() as backend:
            await backend.publish("k", {})
            consumer = AsyncLoopConsumer(backend)
            await settled(consumer, handler, lambda: len(outcomes) == 3)
            (dead,) = await backend.dead_letters()
            assert dead.headers["abe-dead-reason"] == "by hand"
            assert (consumer.processed, consumer.failed) == (0, 0)
        assert outcomes == ["seen", True, Outcome.REJECT]

    real(main())


def test_a_blocking_settlement_on_the_loop_is_an_error_instead_of_a_deadlock() -> None:
    async def settle(message: SyncMessage) -> None:
        message.ack()

    async def main() -> None:
        async with memory() as backend:
            await backend.publish("k", {})
            consumer = AsyncLoopConsumer(backend, retry=RetryPolicy(max_attempts=1))
            await settled(consumer, lambda m: settle(m), lambda: consumer.dead)
            assert isinstance(consumer.last_error, LoopError)
            assert "must be an async function itself" in str(consumer.last_error)

    real(main())


def test_a_message_settled_in_a_thread_after_the_loop_is_gone_is_lost() -> None:
    go, messages, results = threading.Event(), [], []

    def handler(message: SyncMessage) -> None:
        messages.append(message)
        go.wait(10)
        results.append(message.ack())
        go.clear()

    async def main() -> None:
        async with memory() as backend:
            await backend.publish("k", {})
            consumer = AsyncLoopConsumer(backend, drain_timeout=0.0)
            await settled(consumer, handler, lambda: messages)

    real(main())
    go.set()
    deadline = time.monotonic() + 10
    while not results and time.monotonic() < deadline:
        time.sleep(0.001)
    assert results == [False]


# -- verdicts --------------------------------------------------------------------------------


def test_returned_is_acked(broker: Broker, run: VirtualRun) -> None:
    async def main() -> None:
        broker.publish(20)
        consumer = AsyncLoopConsumer(Scripted(broker), "g")
        handler = Recorder()
        await settled(consumer, handler, lambda: consumer.processed == 20)
        assert handler.numbers == list(range(20))
        assert broker.acked() == list(range(20))
        assert (consumer.failed, consumer.retried, consumer.dead) == (0, 0, 0)
        assert consumer.last_error is None

    run(main())


def test_reject_goes_to_the_dead_letters_with_the_reason(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        async with memory() as backend:
            await backend.publish("k", {"n": 1})
            consumer = AsyncLoopConsumer(backend, "g")
            with caplog.at_level(logging.INFO):
                await settled(consumer, Recorder(Reject("no such customer")), lambda: consumer.dead)
            (dead,) = await backend.dead_letters(group="g")
            assert dead.headers["abe-dead-reason"] == "no such customer"
            assert dead.attempt == 1
            assert (consumer.processed, consumer.failed, consumer.retried) == (0, 1, 0)
            assert isinstance(consumer.last_error, Reject)

    real(main())
    (record,) = [r for r in caplog.records if r.name == module.__name__]
    assert record.levelno == logging.INFO
    assert record.getMessage().startswith("rejected by the handler: no such customer (backend=")


def test_a_reason_that_is_an_exception_is_kept_as_text() -> None:
    """Neither ``raise Reject(error)`` nor ``message.reject(error)`` loses the message."""

    async def main() -> None:
        async with memory() as backend:
            await backend.publish("k", {"n": 1})
            consumer = AsyncLoopConsumer(backend, "g")
            await settled(consumer, Recorder(Reject(KeyError("a"))), lambda: consumer.dead)
            await backend.publish("k", {"n": 2})
            async with backend.consume(group="g") as stream:
                await (await anext(stream)).reject(KeyError("b"))
            dead = await backend.dead_letters(group="g")
            reasons = [letter.headers["abe-dead-reason"] for letter in dead]
            assert reasons == ["KeyError: 'a'", "KeyError: 'b'"]

    real(main())


def test_retry_comes_back_after_the_delay_it_asks_for(
    broker: Broker, run: VirtualRun, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def main() -> None:
        broker.publish()
        consumer = AsyncLoopConsumer(Scripted(broker))
        handler = Recorder(Retry(delay=70.0), Retry(0.0))
        await settled(consumer, handler, lambda: consumer.processed, step=5.0)
        assert handler.attempts == [1, 2, 3]
        assert handler.gaps == pytest.approx([70.0, 0.0], abs=0.1)
        assert handler.gaps[0] >= 70.0
        assert (consumer.failed, consumer.retried, consumer.dead) == (2, 2, 0)
        assert broker.records[0].outcomes == ["nack", "nack", "ack"]

    run(main())
    told = [(r.levelname, r.getMessage().partition(" (")[0]) for r in caplog.records]
    assert told == [
        ("INFO", "the handler asks for a retry; trying again in 70 s"),
        ("INFO", "the handler asks for a retry; trying again in 0 s"),
    ]


@pytest.mark.parametrize("delay", [None, -1.0, math.nan])
def test_retry_without_a_usable_delay_leaves_it_to_the_policy(
    delay: float | None, broker: Broker, run: VirtualRun
) -> None:
    async def main() -> None:
        broker.publish()
        consumer = AsyncLoopConsumer(Scripted(broker), retry=STEADY)
        handler = Recorder(Retry(delay))
        await settled(consumer, handler, lambda: consumer.processed)
        assert handler.gaps == pytest.approx([1.0], abs=0.1)

    run(main())


def test_other_exceptions_back_off_up_to_a_limit_and_then_go_to_the_dead_letters(
    broker: Broker, run: VirtualRun, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        broker.publish(2)
        retry = RetryPolicy(max_attempts=5, base=1.0, factor=2.0, max_delay=3.0, jitter=False)
        consumer = AsyncLoopConsumer(Scripted(broker), "g", retry=retry)
        broker.records[1].due = math.inf
        handler = Recorder(*(ValueError(f"try {n}") for n in range(5)))
        await settled(consumer, handler, lambda: consumer.dead)
        assert handler.attempts == [1, 2, 3, 4, 5]
        assert handler.gaps == pytest.approx([1.0, 2.0, 3.0, 3.0], abs=0.1)
        assert broker.records[0].outcomes == ["nack"] * 4 + ["reject"]
        assert (consumer.failed, consumer.retried, consumer.dead) == (5, 4, 1)
        assert str(consumer.last_error) == "try 4"

    run(main())
    records = [r for r in caplog.records if r.name == module.__name__]
    assert [r.getMessage() for r in records] == [
        *(
            f"handler failed; trying again in {delay} s "
            f"(backend=scripted group=g key=k id=id-0 attempt={attempt})"
            for attempt, delay in enumerate((1, 2, 3, 3), start=1)
        ),
        "handler failed; no attempts left (backend=scripted group=g key=k id=id-0 attempt=5)",
    ]
    for record in records:
        assert record.levelno == logging.WARNING
        assert record.exc_info is not None
        assert isinstance(record.exc_info[1], ValueError)
        fields = ("scripted", "g", "k", "id-0")
        assert tuple(record.__dict__[f] for f in ("backend", "group", "key", "id")) == fields


@pytest.mark.parametrize("threaded", [True, False])
def test_the_traceback_begins_in_the_handler(
    threaded: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(message: Any) -> None:
        raise ValueError("no price")

    async def handler(message: Message) -> None:
        fail(message)

    async def main() -> None:
        async with memory() as backend:
            await backend.publish("k", {})
            consumer = AsyncLoopConsumer(backend, retry=RetryPolicy(max_attempts=1))
            await settled(consumer, fail if threaded else handler, lambda: consumer.dead)

    real(main())
    (record,) = [r for r in caplog.records if r.name == module.__name__]
    assert record.exc_info is not None
    frames = [frame.name for frame in traceback.extract_tb(record.exc_info[2])]
    assert frames == (["fail"] if threaded else ["handler", "fail"])


def test_the_traceback_is_whole_if_it_does_not_reach_a_handler_in_python() -> None:
    async def main() -> None:
        async with memory() as backend:
            await backend.publish("k", {})
            consumer = AsyncLoopConsumer(backend, retry=RetryPolicy(max_attempts=1))
            await settled(consumer, operator.itemgetter("missing"), lambda: consumer.dead)
            assert isinstance(consumer.last_error, KeyError)
            assert consumer.last_error.__traceback__ is not None

    real(main())


def test_the_reason_of_a_dead_letter_says_what_was_raised_and_where() -> None:
    async def handler(message: Message) -> None:
        raise KeyError("customer")

    async def main() -> None:
        async with memory() as backend:
            await backend.publish("k", {})
            consumer = AsyncLoopConsumer(backend, retry=RetryPolicy(max_attempts=1))
            await settled(consumer, handler, lambda: consumer.dead)
            (dead,) = await backend.dead_letters()
            assert dead.headers["abe-dead-reason"] == "KeyError: 'customer'"
            assert 'raise KeyError("customer")' in dead.headers["abe-dead-traceback"]
            assert dead.headers["abe-dead-attempts"] == "1"

    real(main())


def test_a_delay_is_capped_at_what_the_backend_can(tools: type[Toolbox]) -> None:
    broker = tools.broker(nack_delay=5.0)

    async def main() -> None:
        broker.publish()
        consumer = AsyncLoopConsumer(Scripted(broker))
        handler = Recorder(Retry(60.0))
        await settled(consumer, handler, lambda: consumer.processed)
        assert handler.gaps == pytest.approx([5.0], abs=0.1)

    tools.run(main())
    broker.check()


def test_a_policy_may_be_as_small_as_this() -> None:
    policy = RetryPolicy(max_attempts=1, base=0.0, factor=1.0, max_delay=0.0)
    assert policy.delay(1) == policy.delay(50) == 0.0


def test_the_policy() -> None:
    plain = RetryPolicy(base=0.5, factor=2.0, max_delay=60.0, jitter=False)
    assert [plain.delay(n) for n in (1, 2, 3, 8, 10**6)] == [0.5, 1.0, 2.0, 60.0, 60.0]
    delays = [RetryPolicy(base=8.0).delay(1) for _ in range(500)]
    assert 4.0 <= min(delays) < 5.0
    assert 7.0 < max(delays) <= 8.0
    assert RetryPolicy(base=0.0).delay(5) == 0.0
    assert RetryPolicy() == RetryPolicy(
        max_attempts=5, base=0.5, factor=2.0, max_delay=60.0, jitter=True
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"max_attempts": 0},
        {"base": -1.0},
        {"base": math.nan},
        {"factor": 0.5},
        {"max_delay": -1.0},
        {"max_delay": math.nan},
    ],
)
def test_a_policy_out_of_range_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        RetryPolicy(**settings)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"concurrency": 0}, ConfigurationError),
        ({"drain_timeout": -1.0}, ConfigurationError),
        ({"group": "a b"}, InvalidKeyError),
        ({"dead_letter_key": "a b"}, InvalidKeyError),
    ],
)
def test_a_consumer_out_of_range_is_refused(settings: dict[str, Any], error: type) -> None:
    with pytest.raises(error):
        AsyncLoopConsumer(memory(), **settings)


def test_it_is_an_event_consumer() -> None:
    assert isinstance(AsyncLoopConsumer(memory()), EventConsumer)


# -- cancellation ----------------------------------------------------------------------------


async def cancels_itself(message: Message) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)


async def raises_cancelled(message: Message) -> None:
    raise asyncio.CancelledError


async def awaits_a_cancelled_task(message: Message) -> None:
    task = asyncio.create_task(asyncio.sleep(1))
    task.cancel()
    await task


@pytest.mark.parametrize("misbehave", [cancels_itself, raises_cancelled, awaits_a_cancelled_task])
def test_a_cancellation_that_the_consumer_did_not_cause_is_a_failure(
    misbehave: Callable[[Message], Coroutine[Any, Any, None]], broker: Broker, run: VirtualRun
) -> None:
    async def handler(message: Message) -> None:
        if message["n"] == 0:
            await misbehave(message)
        # What the handler before did to this task must not break what this one does.
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await asyncio.sleep(1)
        with pytest.raises(ExceptionGroup):
            await use_a_group()

    async def use_a_group() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(fails())
            await asyncio.sleep(1)

    async def fails() -> None:
        raise ValueError

    async def main() -> None:
        broker.publish(2)
        consumer = AsyncLoopConsumer(Scripted(broker), retry=FAST)
        await settled(consumer, handler, lambda: consumer.processed + consumer.dead == 2)
        assert broker.records[0].outcomes == ["nack", "nack", "reject"]
        assert broker.records[1].outcomes == ["ack"]
        assert isinstance(consumer.last_error, asyncio.CancelledError)
        assert (consumer.processed, consumer.failed) == (1, 3)

    run(main())


def test_a_cancellation_raised_in_a_thread_is_a_failure() -> None:
    def handler(message: SyncMessage) -> None:
        raise asyncio.CancelledError

    async def main() -> None:
        async with memory() as backend:
            await backend.publish("k", {})
            consumer = AsyncLoopConsumer(backend, retry=FAST)
            await settled(consumer, handler, lambda: consumer.dead)
            assert consumer.failed == 3

    real(main())


@pytest.mark.parametrize("concurrency", [1, 3])
def test_its_own_cancellation_is_a_release(
    concurrency: int, broker: Broker, run: VirtualRun
) -> None:
    async def main() -> None:
        broker.publish(10)
        consumer = AsyncLoopConsumer(Scripted(broker), concurrency=concurrency)
        handler = Recorder(*[1000.0] * 10)
        task = asyncio.create_task(consumer.run(handler))
        await until(lambda: consumer.in_flight == concurrency)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert broker.leased() == []
        assert {o for r in broker.records for o in r.outcomes} == {"release"}
        assert broker.settled("release")
        assert (consumer.failed, consumer.processed, consumer.in_flight) == (0, 0, 0)
        # The consumer can be run again, and attempts were not counted.
        again = Recorder()
        await settled(consumer, again, lambda: consumer.processed == 10)
        assert set(again.attempts) == {1}

    run(main())


def test_cancelling_a_handler_that_swallows_it_still_ends_the_run(
    broker: Broker, run: VirtualRun
) -> None:
    async def handler(message: Message) -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(1000)

    async def main() -> None:
        broker.publish(5)
        consumer = AsyncLoopConsumer(Scripted(broker))
        task = asyncio.create_task(consumer.run(handler))
        await until(lambda: consumer.in_flight)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert consumer.processed == 1
        assert broker.acked() == [0]
        assert broker.leased() == []

    run(main())


def test_a_timeout_around_run_is_a_timeout(broker: Broker, run: VirtualRun) -> None:
    async def main() -> None:
        broker.publish(3)
        consumer = AsyncLoopConsumer(Scripted(broker))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await consumer.run(Recorder(1.0, 1000.0))
        assert broker.acked() == [0]
        assert set(broker.records[1].outcomes) == {"release"}
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    run(main())


@pytest.mark.parametrize("first", ["run", "handlers"])
def test_whoever_cancels_all_tasks_cancels_the_run_in_any_order(
    first: str, broker: Broker, run: VirtualRun
) -> None:
    async def main() -> None:
        broker.publish(2)
        consumer = AsyncLoopConsumer(Scripted(broker), concurrency=2)
        task = asyncio.create_task(consumer.run(Recorder(1000.0, 1000.0)))
        await until(lambda: consumer.in_flight == 2)
        assert consumer._run is not None
        workers = [*consumer._run._workers]
        for each in [task, *workers] if first == "run" else [*workers, task]:
            each.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert {o for r in broker.records for o in r.outcomes} == {"release"}
        assert consumer.failed == 0

    run(main())


def test_a_consumer_whose_tasks_somebody_cancels_does_not_end_as_if_told_to(
    broker: Broker, run: VirtualRun
) -> None:
    async def main() -> None:
        consumer = AsyncLoopConsumer(Scripted(broker))
        task = asyncio.create_task(consumer.run(Recorder()))
        await until(lambda: consumer._run is not None and consumer._run._workers)
        await asyncio.sleep(1)
        assert consumer._run is not None
        for worker in consumer._run._workers:
            worker.cancel()
        with pytest.raises(asyncio.CancelledError, match="somebody cancelled"):
            await task

    run(main())


@pytest.mark.parametrize("nested", [False, True])
def test_the_end_of_the_loop_releases_what_is_in_flight(nested: bool) -> None:
    """``asyncio.run`` cancels the tasks of the stream as well, in any order."""

    async def handler(message: Message) -> None:
        started.append(message.attempt)
        try:
            await (asyncio.create_task(asyncio.sleep(1000)) if nested else asyncio.sleep(1000))
        finally:
            await asyncio.sleep(0)

    async def main() -> None:
        await backend.publish("k", {})
        task = asyncio.create_task(AsyncLoopConsumer(backend).run(handler))
        await until(lambda: started, 0.0)
        assert not task.done()

    async def look() -> list[Message]:
        return await backend.peek()

    for _ in range(10):
        backend = memory()
        started: list[int] = []
        real(main())
        (message,) = real(look())
        assert message.attempt == 1


def test_a_cancellation_while_a_thread_works_leaves_the_message_to_the_thread() -> None:
    go, started = threading.Event(), threading.Event()

    def handler(message: SyncMessage) -> None:
        started.set()
        go.wait(10)

    async def main() -> None:
        async with memory() as backend:
            await backend.publish("k", {})
            consumer = AsyncLoopConsumer(backend)
            task = asyncio.create_task(consumer.run(handler))
            await until(started.is_set, 0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert (await backend.stats()).total("in_flight") == 1
            backend._store.advance_time(30)
            (message,) = await backend.peek()
            assert message.attempt == 2
        go.set()

    real(main())


def test_what_a_thread_has_finished_counts_even_if_the_cancellation_comes_first() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()

        def cancel_at_the_worst_moment() -> None:
            # Meanwhile the thread returns and reports; only then is the run cancelled.
            returned.wait(10)
            time.sleep(0.02)
            task.cancel()

        def handler(message: SyncMessage) -> None:
            loop.call_soon_threadsafe(cancel_at_the_worst_moment)
            returned.set()

        returned = threading.Event()
        async with memory() as backend:
            await backend.publish("k", {})
            consumer = AsyncLoopConsumer(backend)
            task = asyncio.create_task(consumer.run(handler))
            with pytest.raises(asyncio.CancelledError):
                await task
            assert consumer.processed == 1
            assert (await backend.stats()).entries == ()

    real(main())


@pytest.mark.parametrize("concurrency", [1, 4])
def test_two_thousand_cancellations_lose_nothing_and_double_nothing(
    concurrency: int, tools: type[Toolbox]
) -> None:
    """A run cancelled at any moment; every message is handled to the end exactly once."""
    total, cancellations, seed = 300, 1000, 7
    choice = random.Random(seed)
    broker = tools.broker()
    finished: Counter[int] = Counter()

    async def handler(message: Message) -> None:
        for _ in range(choice.randrange(4)):
            await asyncio.sleep(choice.choice((0.0, 0.0, 0.001)))
        finished[message["n"]] += 1

    async def main() -> None:
        backend = Scripted(broker)
        published = cancelled = 0
        consumer = AsyncLoopConsumer(backend, concurrency=concurrency)
        while cancelled < cancellations:
            if published < total and choice.random() < 0.5:
                broker.publish(choice.randrange(3))
                published = len(broker.records)
            task = asyncio.create_task(consumer.run(handler))
            for _ in range(choice.randrange(25)):
                await asyncio.sleep(0)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            cancelled += 1
        await settled(consumer, handler, lambda: len(finished) == published)
        assert published > total / 2
        assert sorted(finished) == list(range(published))
        assert set(finished.values()) == {1}
        assert consumer.processed == published
        assert {r.outcome for r in broker.records} == {"ack"}
        assert {r.failed for r in broker.records} == {0}

    tools.run(main(), debug=False)
    broker.check()


# -- exhausted -------------------------------------------------------------------------------


def announced(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        r.getMessage()
        for r in caplog.records
        if r.levelno == logging.WARNING and "no dead letters" in r.getMessage()
    ]


def test_without_dead_letters_it_is_logged_as_an_error_and_announced_once(
    tools: type[Toolbox], caplog: pytest.LogCaptureFixture
) -> None:
    broker = tools.broker(reject=False)

    async def main() -> None:
        broker.publish(3)
        consumer = AsyncLoopConsumer(Scripted(broker), retry=FAST)
        await settled(consumer, Recorder(*[ValueError("no")] * 9), lambda: consumer.dead == 3)
        assert [r.outcomes[-1] for r in broker.records] == ["ack"] * 3
        assert consumer.processed == 0

    tools.run(main())
    broker.check()
    (warning,) = announced(caplog)
    assert warning == (
        "backend scripted has no dead letters and no dead_letter_key is given: a message that "
        "fails 3 times will be logged as an error and dropped"
    )
    errors = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert errors == [
        f"dropped: ValueError: no (backend=scripted group=None key=k id=id-{n} attempt=3)"
        for n in range(3)
    ]


@pytest.mark.parametrize("headers", [True, False])
def test_with_a_dead_letter_key_it_is_published_there_and_never_received(
    headers: bool, tools: type[Toolbox], caplog: pytest.LogCaptureFixture
) -> None:
    broker = tools.broker(reject=False, headers=headers)
    backend = Scripted(broker)

    async def main() -> None:
        broker.publish(2)
        consumer = AsyncLoopConsumer(backend, retry=FAST, dead_letter_key="failed.orders")
        handler = Recorder(*[ValueError("no")] * 6)
        await settled(consumer, handler, lambda: not broker.unsettled())
        assert set(handler.numbers) == {0, 1}
        assert len(handler.messages) == 6
        assert consumer.dead == 2
        assert [r.outcome for r in broker.records] == ["ack"] * 4

    tools.run(main())
    broker.check()
    assert announced(caplog) == []
    assert [(key, payload["n"]) for key, payload, _ in backend.published] == [
        ("failed.orders", 0),
        ("failed.orders", 1),
    ]
    for n, (_, _, extras) in enumerate(backend.published):
        assert bool(extras) is headers
        if headers:
            assert extras["headers"]["abe-dead-reason"] == "ValueError: no"
            assert extras["headers"]["abe-dead-attempts"] == "3"
            assert extras["headers"]["abe-dead-id"] == f"id-{n}"
            assert extras["headers"]["abe-dead-key"] == "k"


def test_a_dead_letter_is_published_before_the_message_is_acked(tools: type[Toolbox]) -> None:
    broker = tools.broker(reject=False)
    backend = Scripted(broker)

    async def main() -> None:
        (record,) = broker.publish()
        consumer = AsyncLoopConsumer(backend, dead_letter_key="dead")
        outcomes: list[str] = []
        original = backend.publish

        async def publish(key: str, payload: dict[str, Any], **extras: Any) -> None:
            outcomes.append(record.outcome)
            await original(key, payload, **extras)
            outcomes.append(record.outcome)

        backend.publish = publish  # type: ignore[method-assign]
        await settled(consumer, Recorder(Reject("x")), lambda: not broker.unsettled())
        assert outcomes == ["", ""]

    tools.run(main())


def test_while_the_broker_is_away_a_dead_letter_is_tried_again(
    tools: type[Toolbox], caplog: pytest.LogCaptureFixture
) -> None:
    broker = tools.broker(reject=False)
    backend = Scripted(broker)
    backend.refusals += [
        ConnectionLostError("away"),
        TimeoutError(),
        PublishError("full", retryable=True),
    ]

    async def main() -> None:
        broker.publish()
        consumer = AsyncLoopConsumer(backend, retry=STEADY, dead_letter_key="dead")
        handler = Recorder(Reject("x"))
        loop = asyncio.get_running_loop()
        started = loop.time()
        await settled(consumer, handler, lambda: consumer.dead)
        assert loop.time() - started == pytest.approx(6.0, abs=0.1)
        assert len(handler.messages) == 1
        assert len(backend.published) == 1
        assert broker.records[0].outcomes == ["ack"]

    tools.run(main())
    broker.check()
    texts = [r.getMessage() for r in caplog.records if "cannot publish" in r.getMessage()]
    assert [t.partition(" (")[0] for t in texts] == [
        f"cannot publish to 'dead'; trying again in {n} s" for n in (1, 2, 3)
    ]


@pytest.mark.parametrize("how", ["shutdown", "cancel"])
def test_a_dead_letter_that_cannot_be_published_is_released_at_the_end(
    how: str, tools: type[Toolbox]
) -> None:
    broker = tools.broker(reject=False)
    backend = Scripted(broker)
    backend.refusals += [ConnectionLostError("away")] * 1000

    async def main() -> None:
        broker.publish()
        consumer = AsyncLoopConsumer(backend, retry=STEADY, dead_letter_key="dead")
        task = asyncio.create_task(consumer.run(Recorder(Reject("x"))))
        await until(lambda: len(backend.refusals) < 999, 0.1)
        if how == "shutdown":
            await consumer.shutdown()
            await task
        else:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert broker.records[0].outcomes == ["release"]
        assert consumer.dead == 0

    tools.run(main())
    broker.check()


@pytest.mark.parametrize("attempts", ["first", "poison"])
def test_a_dead_letter_that_is_refused_for_good_ends_the_run_and_releases_the_message(
    attempts: str, tools: type[Toolbox]
) -> None:
    broker = tools.broker(reject=False)
    backend = Scripted(broker)
    cause = OSError("disk")
    backend.refusals.append(PublishError("too large"))
    backend.refusals[0].__cause__ = cause

    async def main() -> None:
        record, other = broker.publish(2)
        record.failed = 20 if attempts == "poison" else 0
        other.due = 10.0
        consumer = AsyncLoopConsumer(backend, concurrency=3, dead_letter_key="dead")
        with pytest.raises(PublishError, match="too large") as caught:
            await consumer.run(Recorder(Reject("x")))
        assert caught.value.__cause__ is cause
        assert set(record.outcomes) == {"release"}
        assert broker.leased() == []

    tools.run(main())
    broker.check()


def test_a_poisonous_message_is_rejected_unhandled(
    broker: Broker, run: VirtualRun, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        at_limit, beyond = broker.publish(2)
        at_limit.failed, beyond.failed = 5, 6
        consumer = AsyncLoopConsumer(Scripted(broker), retry=FAST)
        handler = Recorder()
        await settled(consumer, handler, lambda: not broker.unsettled())
        assert handler.attempts == [6]
        assert (at_limit.outcome, beyond.outcome) == ("ack", "reject")
        assert (consumer.processed, consumer.dead, consumer.failed) == (1, 1, 0)

    run(main())
    (error,) = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert error.startswith("delivered 7 times without a verdict; not handled again (backend=")


# -- retrying in process ---------------------------------------------------------------------


@pytest.mark.parametrize("declared", [{"nack_delay": 0.0}, {"attempts": "none"}])
def test_where_the_broker_cannot_delay_the_consumer_waits_and_keeps_the_lease(
    declared: dict[str, Any], tools: type[Toolbox]
) -> None:
    broker = tools.broker(**declared)

    async def main() -> None:
        broker.publish()
        retry = RetryPolicy(max_attempts=3, base=100.0, max_delay=100.0, jitter=False)
        consumer = AsyncLoopConsumer(Scripted(broker), retry=retry)
        handler = Recorder(ValueError(), Retry(50.0), 40.0)
        await settled(consumer, handler, lambda: consumer.processed, step=5.0)
        assert handler.attempts == [1, 2, 3]
        assert handler.gaps == pytest.approx([100.0, 50.0], abs=0.5)
        assert broker.records[0].deliveries == 1
        assert broker.records[0].outcomes == ["ack"]
        assert broker.extended() == [0]
        assert (consumer.failed, consumer.retried, consumer.dead) == (2, 2, 0)

    tools.run(main())
    broker.check()


def test_in_process_retries_end_like_all_others(tools: type[Toolbox]) -> None:
    broker = tools.broker(nack_delay=0.0)

    async def main() -> None:
        broker.publish()
        consumer = AsyncLoopConsumer(Scripted(broker), retry=FAST)
        handler = Recorder(*[ValueError()] * 3)
        await settled(consumer, handler, lambda: consumer.dead)
        assert broker.records[0].outcomes == ["reject"]
        assert (consumer.failed, consumer.retried) == (3, 2)

    tools.run(main())
    broker.check()


def test_a_message_whose_lease_is_lost_while_a_retry_waits_is_left_to_its_next_delivery(
    tools: type[Toolbox],
) -> None:
    broker = tools.broker(nack_delay=0.0)

    async def main() -> None:
        (record,) = broker.publish()
        retry = RetryPolicy(base=100.0, max_delay=100.0, jitter=False)
        consumer = AsyncLoopConsumer(Scripted(broker), retry=retry)
        handler = Recorder(ValueError())
        task = asyncio.create_task(consumer.run(handler))
        await until(lambda: consumer.failed)
        broker.expire(record)
        await until(lambda: consumer.processed, 1.0)
        await consumer.shutdown()
        await task
        assert handler.attempts == [1, 2]
        assert handler.messages[0] is not handler.messages[1]
        assert handler.messages[0].outcome is Outcome.LOST

    tools.run(main())
    broker.check()


@pytest.mark.parametrize("how", ["shutdown", "cancel"])
def test_stopping_while_a_retry_waits_releases_at_once(how: str, tools: type[Toolbox]) -> None:
    broker = tools.broker(nack_delay=0.0)

    async def main() -> None:
        broker.publish()
        consumer = AsyncLoopConsumer(Scripted(broker), retry=RetryPolicy(base=60.0))
        handler = Recorder(ValueError())
        task = asyncio.create_task(consumer.run(handler))
        await until(lambda: consumer.failed)
        loop = asyncio.get_running_loop()
        started = loop.time()
        if how == "shutdown":
            await consumer.shutdown()
            await task
        else:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert loop.time() - started < 1.0
        assert broker.records[0].outcomes == ["release"]
        assert handler.attempts == [1]
        assert consumer.in_flight == 0

    tools.run(main())
    broker.check()


# -- plain backends --------------------------------------------------------------------------


def test_a_plain_backend_is_asked_for_nothing_more_than_the_group(run: VirtualRun) -> None:
    async def main() -> None:
        backend = Plain({"n": 1}, ends=True)
        await AsyncLoopConsumer(backend, "billing").run(Recorder())
        await AsyncLoopConsumer(backend).run(Recorder())
        assert backend.opened == [((), {"group": "billing"}), ((), {"group": None})]

    run(main())


def test_a_first_party_backend_is_asked_so_too_and_for_keys_only_if_given(
    tools: type[Toolbox],
) -> None:
    broker = tools.broker(keys="consumer")
    backend = Scripted(broker)

    async def main() -> None:
        for keys in (None, "a.*", ["b", "a"]):
            consumer = AsyncLoopConsumer(backend, "g", keys=keys)
            await settled(consumer, Recorder(), lambda: True)
        assert backend.opened == [
            {"group": "g"},
            {"group": "g", "keys": ("a.*",)},
            {"group": "g", "keys": ("a", "b")},
        ]

    tools.run(main())


def test_keys_on_a_plain_backend_are_unsupported_and_nothing_is_opened(run: VirtualRun) -> None:
    async def main() -> None:
        backend = Plain()
        with pytest.raises(UnsupportedError, match="capability 'keys'"):
            await AsyncLoopConsumer(backend, keys="a").run(Recorder())
        assert backend.opened == []

    run(main())


def test_a_plain_iterator_is_resumed_only_after_the_handler_and_its_end_ends_the_run(
    run: VirtualRun,
) -> None:
    async def main() -> None:
        backend = Plain(*({"n": n} for n in range(3)), ends=True)
        acked: list[int] = []

        async def handler(message: Message) -> None:
            acked.append(len(backend.acked))
            await asyncio.sleep(1)
            assert (message.id, message.key, message.timestamp) == (None, None, None)

        consumer = AsyncLoopConsumer(backend)
        await consumer.run(handler)
        assert acked == [0, 1, 2]
        assert len(backend.acked) == 3
        assert consumer.processed == 3

    run(main())


def test_on_a_plain_backend_failures_are_retried_in_process(
    run: VirtualRun, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        backend = Plain({"n": 1}, {"n": 2}, ends=True)
        consumer = AsyncLoopConsumer(backend, retry=STEADY)
        handler = Recorder(*[ValueError("no")] * 4)
        await consumer.run(handler)
        assert handler.numbers == [1, 1, 1, 1, 2]
        assert handler.attempts == [1, 2, 3, 4, 1]
        assert handler.gaps == pytest.approx([1.0, 2.0, 3.0, 0.0], abs=0.1)
        assert backend.acked == [{"n": 1}, {"n": 2}]
        assert (consumer.processed, consumer.dead) == (1, 1)

    run(main())
    assert len(announced(caplog)) == 1
    assert announced(caplog)[0].startswith("backend Plain has no dead letters")


def test_what_a_backend_declares_counts_only_if_its_stream_can_do_it(
    run: VirtualRun, caplog: pytest.LogCaptureFixture
) -> None:
    """A plain iterator cannot nack or reject, whatever its backend declares."""

    async def main() -> None:
        backend = Plain({"n": 1}, {"n": 2}, ends=True)
        backend.capabilities = Capabilities(  # type: ignore[attr-defined]
            redelivery="message", release=True, reject=True, attempts="exact", nack_delay=60.0
        )
        consumer = AsyncLoopConsumer(backend, retry=FAST)
        handler = Recorder(*[ValueError("no")] * 3)
        await consumer.run(handler)
        assert handler.numbers == [1, 1, 1, 2]
        assert (consumer.processed, consumer.dead) == (1, 1)

    run(main())
    assert len(announced(caplog)) == 1


def test_on_a_plain_backend_the_own_dead_letters_are_not_received(run: VirtualRun) -> None:
    async def main() -> None:
        bad = {"b": 2, "a": 1, "bad": True}
        backend = Plain(bad, {"n": 2})

        async def handler(message: Message) -> None:
            handled.append(dict(message))
            if message.get("bad"):
                raise Reject("bad")

        handled: list[dict[str, Any]] = []
        consumer = AsyncLoopConsumer(backend, dead_letter_key="dead")
        task = asyncio.create_task(consumer.run(handler))
        await until(lambda: len(backend.acked) == 3)
        assert backend.log == [("dead", bad)]
        assert handled == [bad, {"n": 2}]
        # The same payload published by somebody else is a message like any other.
        await backend.publish("k", bad)
        await until(lambda: len(backend.acked) == 5)
        await consumer.shutdown()
        await task
        assert handled == [bad, {"n": 2}, bad]
        assert consumer.dead == 2

    run(main())


def test_a_plain_backend_that_reorders_the_dict_is_still_recognised(run: VirtualRun) -> None:
    class Reordering(Plain):
        async def publish(self, *args: Any) -> None:
            key, payload = args
            await super().publish(key, dict(reversed(payload.items())))

    async def main() -> None:
        backend = Reordering({"a": 1, "b": {1, 2}})
        consumer = AsyncLoopConsumer(backend, dead_letter_key="dead")
        handler = Recorder(Reject("x"))
        await settled(consumer, handler, lambda: len(backend.acked) == 2)
        assert len(handler.messages) == 1

    run(main())


@pytest.mark.parametrize("how", ["shutdown", "cancel"])
def test_a_plain_backend_keeps_what_was_not_finished(how: str, run: VirtualRun) -> None:
    async def main() -> None:
        backend = Plain({"n": 1})
        consumer = AsyncLoopConsumer(backend, drain_timeout=1.0)
        task = asyncio.create_task(consumer.run(Recorder(1000.0)))
        await until(lambda: consumer.in_flight)
        if how == "shutdown":
            await consumer.shutdown()
            await task
        else:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert list(backend.waiting) == [{"n": 1}]
        assert backend.acked == []

    run(main())


def test_a_message_lost_with_the_process_is_announced_if_several_are_in_flight(
    run: VirtualRun, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        await AsyncLoopConsumer(Plain(ends=True), concurrency=2).run(Recorder())
        await AsyncLoopConsumer(Plain(ends=True)).run(Recorder())

    run(main())
    texts = [r.getMessage() for r in caplog.records if "no redelivery" in r.getMessage()]
    assert len(texts) == 1
    assert "up to 2 messages in flight may be lost" in texts[0]


def test_nothing_is_announced_where_nothing_is_lost(
    broker: Broker, run: VirtualRun, caplog: pytest.LogCaptureFixture
) -> None:
    broker.ended = True
    run(AsyncLoopConsumer(Scripted(broker), concurrency=4).run(Recorder()))
    assert caplog.records == []


# -- what a handler does itself --------------------------------------------------------------


@pytest.mark.parametrize("fails", [False, True])
def test_what_the_handler_settled_stays_settled(
    fails: bool, broker: Broker, run: VirtualRun, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(message: Message) -> None:
        await getattr(message, script[message["n"]].popleft())()
        if fails:
            raise ValueError

    script = [deque(["ack"]), deque(["reject"]), deque(["nack", "release", "ack"])]

    async def main() -> None:
        broker.publish(3)
        consumer = AsyncLoopConsumer(Scripted(broker), retry=RetryPolicy(max_attempts=1))
        await settled(consumer, handler, lambda: not broker.unsettled())
        assert [r.outcomes for r in broker.records] == [
            ["ack"],
            ["reject"],
            ["nack", "release", "ack"],
        ]
        assert consumer.processed == (0 if fails else 2)
        assert consumer.failed == (5 if fails else 0)
        assert (consumer.retried, consumer.dead) == (0, 0)

    run(main())
    text = "handler failed; the handler settled it"
    assert sum(text in r.getMessage() for r in caplog.records) == (5 if fails else 0)


def test_an_exception_that_is_no_exception_ends_the_run_and_releases(
    broker: Broker, run: VirtualRun
) -> None:
    class Abort(BaseException):
        pass

    async def main() -> None:
        broker.publish(3)
        consumer = AsyncLoopConsumer(Scripted(broker), concurrency=2)
        with pytest.raises(Abort):
            await consumer.run(Recorder(Abort(), 1000.0))
        assert broker.leased() == []
        assert {o for r in broker.records for o in r.outcomes} <= {"release"}
        assert consumer.in_flight == 0

    run(main())


# -- running twice, shutting down ------------------------------------------------------------


def test_a_second_run_returns_or_raises(broker: Broker, run: VirtualRun) -> None:
    async def main() -> None:
        backend = Scripted(broker)
        consumer = AsyncLoopConsumer(backend)
        handler, other = Recorder(), Recorder()
        task = asyncio.create_task(consumer.run(handler))
        await asyncio.sleep(0)
        await consumer.run(handler)
        with pytest.raises(RuntimeError, match="already running with another handler"):
            await consumer.run(other)
        assert not task.done()
        assert len(backend.opened) == 1
        await consumer.shutdown()
        await task
        broker.publish()
        await settled(consumer, other, lambda: consumer.processed)
        assert other.numbers == [0]

    run(main())


def test_a_bound_method_is_the_same_handler_each_time(broker: Broker, run: VirtualRun) -> None:
    async def main() -> None:
        target = AsyncObject()
        consumer = AsyncLoopConsumer(Scripted(broker))
        task = asyncio.create_task(consumer.run(target.method))
        await asyncio.sleep(0)
        await consumer.run(target.method)
        await consumer.shutdown()
        await task

    run(main())


def test_shutdown_before_run_makes_it_return_at_once(broker: Broker, run: VirtualRun) -> None:
    async def main() -> None:
        backend = Scripted(broker)
        consumer = AsyncLoopConsumer(backend)
        running = consumer.run(Recorder())
        await consumer.shutdown()
        await consumer.shutdown()
        await running
        assert backend.opened == []
        broker.publish()
        await settled(consumer, Recorder(), lambda: consumer.processed)

    run(main())


def test_shutdown_twice_does_not_stop_the_next_run(broker: Broker, run: VirtualRun) -> None:
    async def main() -> None:
        consumer = AsyncLoopConsumer(Scripted(broker))
        for round_ in range(3):
            broker.publish()
            task = asyncio.create_task(consumer.run(Recorder()))
            await until(lambda: consumer.processed == round_ + 1, 0.01)  # noqa: B023
            await asyncio.gather(consumer.shutdown(), consumer.shutdown())
            await consumer.shutdown()
            await task
            await consumer.shutdown()

    run(main())


def test_shutdown_between_a_failed_run_and_the_next_is_heard(
    broker: Broker, run: VirtualRun, tools: type[Toolbox]
) -> None:
    """As a supervisor does it: run again after a failure, unless told to stop meanwhile."""

    async def main() -> None:
        broker.faults["open"].append(tools.fault(error=PermissionError("no")))
        backend = Scripted(broker)
        consumer = AsyncLoopConsumer(backend)
        with pytest.raises(PermissionError):
            await consumer.run(Recorder())
        await consumer.shutdown()
        await consumer.run(Recorder())
        assert len(backend.opened) == 1

    run(main())


def test_shutdown_lets_handlers_finish_and_releases_the_rest(
    broker: Broker, run: VirtualRun
) -> None:
    async def main() -> None:
        broker.publish(30)
        consumer = AsyncLoopConsumer(Scripted(broker), concurrency=3, drain_timeout=10.0)
        handler = Recorder(*[0.1] * 12, 5.0, 9.0, 1000.0)
        task = asyncio.create_task(consumer.run(handler))
        await until(lambda: len(handler.messages) == 15)
        late = handler.numbers[-1]
        await consumer.shutdown()
        assert task.done()
        assert len(handler.messages) == 15
        assert consumer.processed == 14
        assert broker.acked() == sorted(set(handler.numbers) - {late})
        assert broker.records[late].outcomes == ["release"]
        assert broker.leased() == []
        assert {o for r in broker.records[15:] for o in r.outcomes} <= {"release"}
        assert {r.failed for r in broker.records} == {0}
        await task

    run(main())


def test_shutdown_waits_at_most_for_the_drain_timeout(broker: Broker, run: VirtualRun) -> None:
    async def main() -> None:
        broker.publish(2)
        consumer = AsyncLoopConsumer(Scripted(broker), concurrency=2, drain_timeout=3.0)
        handler = Recorder(1000.0, 2.0)
        task = asyncio.create_task(consumer.run(handler))
        await until(lambda: consumer.in_flight == 2)
        loop = asyncio.get_running_loop()
        started = loop.time()
        await consumer.shutdown()
        assert loop.time() - started == pytest.approx(3.0, abs=0.2)
        await task
        assert [r.outcomes for r in broker.records] == [["release"], ["ack"]]

    run(main())


def test_shutdown_while_it_waits_for_messages(broker: Broker, run: VirtualRun) -> None:
    async def main() -> None:
        consumer = AsyncLoopConsumer(Scripted(broker), concurrency=4)
        task = asyncio.create_task(consumer.run(Recorder()))
        await asyncio.sleep(5)
        loop = asyncio.get_running_loop()
        started = loop.time()
        await consumer.shutdown()
        assert task.done()
        assert loop.time() == started
        await task

    run(main())


def test_shutdown_flushes_what_was_acked(broker: Broker, run: VirtualRun) -> None:
    async def main() -> None:
        broker.publish()
        broker.latency = 0.5
        consumer = AsyncLoopConsumer(Scripted(broker))
        task = asyncio.create_task(consumer.run(Recorder()))
        await until(lambda: consumer.processed, 0.01)
        assert broker.acked() == []
        await consumer.shutdown()
        assert broker.acked() == [0]
        await task

    run(main())


def test_shutdown_from_the_handler(broker: Broker, run: VirtualRun) -> None:
    async def main() -> None:
        async def handler(message: Message) -> None:
            handled.append(message["n"])
            if len(handled) == 2:
                await consumer.shutdown()
                assert consumer.in_flight == 1

        handled: list[int] = []
        broker.publish(5)
        consumer = AsyncLoopConsumer(Scripted(broker))
        await consumer.run(handler)
        assert handled == [0, 1]
        assert broker.acked() == [0, 1]
        assert broker.leased() == []

    run(main())


def test_shutdown_from_a_task_that_the_handler_waits_for(broker: Broker, run: VirtualRun) -> None:
    async def main() -> None:
        async def handler(message: Message) -> None:
            await asyncio.wait_for(asyncio.create_task(consumer.shutdown()), 5)

        broker.publish(3)
        consumer = AsyncLoopConsumer(Scripted(broker), concurrency=2)
        await consumer.run(handler)
        assert consumer.failed == 0
        assert consumer.processed >= 1
        assert broker.leased() == []

    run(main())


def test_shutdown_from_what_a_finished_handler_left_running_waits_for_the_others(
    broker: Broker, run: VirtualRun
) -> None:
    async def main() -> None:
        async def stop_later() -> None:
            await until(lambda: consumer.in_flight and consumer.processed, 0.01)
            await consumer.shutdown()
            processed.append(consumer.processed)

        async def handler(message: Message) -> None:
            if message["n"] == 0:
                background.append(asyncio.create_task(stop_later()))
            else:
                await asyncio.sleep(5)

        background: list[asyncio.Task[None]] = []
        processed: list[int] = []
        broker.publish(2)
        consumer = AsyncLoopConsumer(Scripted(broker))
        await consumer.run(handler)
        await background[0]
        assert processed == [2]

    run(main())


def test_shutdown_from_a_handler_in_a_thread() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()

        def handler(message: SyncMessage) -> None:
            asyncio.run_coroutine_threadsafe(consumer.shutdown(), loop).result(5)

        async with memory() as backend:
            await backend.publish_many([{}, {}], key="k")
            consumer = AsyncLoopConsumer(backend)
            await consumer.run(handler)
            assert (consumer.processed, consumer.failed) == (1, 0)
            assert (await backend.stats()).total("ready") == 1

    real(main())


def test_shutdown_on_another_loop_is_an_error_instead_of_a_race() -> None:
    def handler(message: SyncMessage) -> None:
        asyncio.run(consumer.shutdown())

    backend = memory()
    consumer = AsyncLoopConsumer(backend, retry=RetryPolicy(max_attempts=1))

    async def main() -> None:
        await backend.publish("k", {})
        await settled(consumer, handler, lambda: consumer.dead)
        assert isinstance(consumer.last_error, LoopError)
        assert "run_coroutine_threadsafe" in str(consumer.last_error)

    real(main())


def test_shutdown_while_the_broker_cannot_be_reached_ends_the_run_quietly(
    broker: Broker, run: VirtualRun
) -> None:
    async def main() -> None:
        broker.down = ConnectionLostError("away")
        consumer = AsyncLoopConsumer(Scripted(broker))
        task = asyncio.create_task(consumer.run(Recorder()))
        await asyncio.sleep(60)
        await consumer.shutdown()
        await task

    run(main())


def test_a_stream_that_fails_for_good_ends_the_run_with_its_error(
    broker: Broker, run: VirtualRun, tools: type[Toolbox]
) -> None:
    async def main() -> None:
        class Refused(AbeError):
            pass

        broker.publish(3)
        error = Refused("no rights")
        error.__cause__ = OSError("driver")
        broker.faults["receive"] += [tools.fault(), tools.fault(error=error)]
        consumer = AsyncLoopConsumer(Scripted(broker), concurrency=3)
        handler = Recorder(*[1000.0] * 3)
        with pytest.raises(Refused) as caught:
            await consumer.run(handler)
        assert caught.value is error
        assert isinstance(caught.value.__cause__, OSError)
        assert consumer.in_flight == 0

    run(main())


def test_a_hanging_thread_keeps_its_message_until_the_lease_lapses() -> None:
    go, started = threading.Event(), threading.Event()

    def handler(message: SyncMessage) -> None:
        started.set()
        go.wait(10)

    async def main() -> None:
        async with memory() as backend:
            await backend.publish_many([{"n": 1}, {"n": 2}], key="k")
            consumer = AsyncLoopConsumer(backend, drain_timeout=0.01)
            task = asyncio.create_task(consumer.run(handler))
            await until(started.is_set, 0.001)
            await consumer.shutdown()
            assert task.done()
            await task
            stats = await backend.stats()
            assert (stats.total("in_flight"), stats.total("ready")) == (1, 1)
            backend._store.advance_time(30)
            assert [(m["n"], m.attempt) for m in await backend.peek()] == [(1, 2), (2, 1)]
        go.set()

    real(main())


HANG = """
import asyncio, threading
from abe.backends.message_queue.consumer import AsyncLoopConsumer
from abe.backends.message_queue.service.memory import MemoryBackend

started = threading.Event()

def hang(message):
    started.set()
    threading.Event().wait()

async def main():
    async with MemoryBackend() as backend:
        await backend.publish("k", {})
        consumer = AsyncLoopConsumer(backend, drain_timeout=0.01)
        task = asyncio.create_task(consumer.run(hang))
        while not started.is_set():
            await asyncio.sleep(0.001)
        await consumer.shutdown()
        await task

asyncio.run(main())
print("the end")
"""


def test_a_hanging_thread_does_not_keep_the_process_alive() -> None:
    command = [sys.executable, "-W", "error", "-c", HANG]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "the end\n", "")


def test_what_the_backend_cannot_do_is_raised_in_the_thread_of_the_handler() -> None:
    refused: list[str] = []

    def handler(message: SyncMessage) -> None:
        with pytest.raises(UnsupportedError) as caught:
            message.reject("broken")
        refused.append(str(caught.value))

    async def main() -> None:
        backend = Plain({"n": 1}, ends=True)
        consumer = AsyncLoopConsumer(backend)
        await consumer.run(handler)
        assert consumer.processed == 1

    real(main())
    assert refused == ["backend 'Plain' does not support reject() (capability 'reject')"]


def test_the_threads_of_a_run_end_with_it() -> None:
    threads: list[threading.Thread] = []

    def handler(message: SyncMessage) -> None:
        threads.append(threading.current_thread())

    async def main() -> None:
        await AsyncLoopConsumer(Plain({"n": 1}, ends=True)).run(handler)

    real(main())
    (thread,) = threads
    thread.join(10)
    assert not thread.is_alive()


# -- concurrency -----------------------------------------------------------------------------


@pytest.mark.parametrize("concurrency", [1, 2, 7])
def test_as_many_handlers_run_as_allowed_and_no_more(
    concurrency: int, broker: Broker, run: VirtualRun
) -> None:
    async def main() -> None:
        async def handler(message: Message) -> None:
            counts.append(consumer.in_flight)
            await asyncio.sleep(1)
            counts.append(consumer.in_flight)

        counts: list[int] = []
        broker.publish(30)
        consumer = AsyncLoopConsumer(Scripted(broker), concurrency=concurrency)
        loop = asyncio.get_running_loop()
        started = loop.time()
        await settled(consumer, handler, lambda: consumer.processed == 30)
        assert max(counts) == concurrency
        assert loop.time() - started == pytest.approx(math.ceil(30 / concurrency), abs=0.5)
        assert consumer.in_flight == 0

    run(main())


def test_sync_handlers_run_side_by_side_in_threads_that_are_reused() -> None:
    barrier = threading.Barrier(3, timeout=10)
    threads: set[str] = set()

    def handler(message: SyncMessage) -> None:
        threads.add(threading.current_thread().name)
        barrier.wait()

    async def main() -> None:
        async with memory() as backend:
            await backend.publish_many([{}] * 30, key="k")
            consumer = AsyncLoopConsumer(backend, concurrency=3)
            await settled(consumer, handler, lambda: consumer.processed == 30)

    real(main())
    assert threads == {"abe-handler-1", "abe-handler-2", "abe-handler-3"}


class KeyOrder:
    """A handler that checks the order of each key while messages fail at random.

    Args:
        choice: Source of randomness.
        failures: Share of calls that fail.
    """

    def __init__(self, choice: random.Random, failures: float) -> None:
        self.choice = choice
        self.failures = failures
        self.running: Counter[str] = Counter()
        self.most = 0
        self.first: defaultdict[str, list[int]] = defaultdict(list)
        self.finished: defaultdict[str, list[int]] = defaultdict(list)

    async def __call__(self, message: Message) -> None:
        key, n = message.key or "", message["n"]
        self.running[key] += 1
        assert self.running[key] == 1, f"two messages of {key} at once"
        self.most = max(self.most, self.running.total())
        if n not in self.first[key]:
            self.first[key].append(n)
        try:
            await asyncio.sleep(self.choice.random())
            if self.choice.random() < self.failures:
                raise ValueError(f"{key} {n}")
            self.finished[key].append(n)
        finally:
            self.running[key] -= 1


class BatchedKeys(Scripted):
    """Per key in order, but several of one key in one batch, as SQS FIFO does it."""

    def __init__(self, broker: Broker) -> None:
        super().__init__(broker)
        broker.take = self._take  # type: ignore[method-assign]
        self.lent: list[int] = []

    def _take(self, limit: int, owner: Any) -> list[Any]:
        broker = self.broker
        broker.advance()
        held = {r.key for r in broker._open.values() if r.lease is not None}
        leases: list[Any] = []
        for record in list(broker._open.values()):
            if record.lease is not None or record.key in held or len(leases) == limit:
                continue
            if record.due > broker.now:
                held.add(record.key)
                continue
            leases.append(broker._lend(record, owner))
        self.lent.append(len(leases))
        return leases


@pytest.mark.parametrize("failures", [0.0, 0.2])
def test_concurrency_keeps_the_order_of_each_key(failures: float, tools: type[Toolbox]) -> None:
    broker = tools.broker(ordering="key")

    async def main() -> None:
        backend = BatchedKeys(broker)
        handler = KeyOrder(random.Random(11), failures)
        for n in range(120):
            broker.publish(1, f"k.{n % 6}")
        consumer = AsyncLoopConsumer(
            backend, concurrency=4, retry=RetryPolicy(max_attempts=50, base=0.1)
        )
        await settled(consumer, handler, lambda: consumer.processed == 120)
        assert handler.most == 4
        assert max(backend.lent) > 6, "no batch held two messages of one key"
        for n in range(6):
            assert handler.finished[f"k.{n}"] == list(range(n, 120, 6))
            assert handler.first[f"k.{n}"] == list(range(n, 120, 6))

    tools.run(main(), debug=False)
    broker.check()


@pytest.mark.parametrize("how", ["shutdown", "cancel", "nack"])
def test_messages_that_wait_for_one_of_their_key_are_released_with_it(
    how: str, tools: type[Toolbox]
) -> None:
    broker = tools.broker(ordering="key")

    async def main() -> None:
        backend = BatchedKeys(broker)
        broker.publish(8)
        consumer = AsyncLoopConsumer(backend, concurrency=2, drain_timeout=1.0)
        go = asyncio.Event()
        handled: list[int] = []

        async def handler(message: Message) -> None:
            handled.append(message["n"])
            if message["n"] == 1:
                await go.wait()
                raise Retry(1000.0)

        task = asyncio.create_task(consumer.run(handler))
        await until(lambda: consumer._run is not None and any(consumer._run._busy.values()))
        assert handled == [0, 1]
        if how == "nack":
            go.set()
            await until(lambda: broker.records[1].failed, 0.01)
            await asyncio.sleep(1)
            assert handled == [0, 1]
            assert broker.leased() == []
            await consumer.shutdown()
        elif how == "cancel":
            task.cancel()
        else:
            await consumer.shutdown()
        with suppress(asyncio.CancelledError):
            await task
        assert broker.leased() == []
        assert {r.failed for r in broker.records[2:]} == {0}
        assert broker.acked() == [0]

    tools.run(main(), debug=False)
    broker.check()


def test_what_waits_for_one_of_its_key_is_not_begun_any_more_while_draining(
    tools: type[Toolbox],
) -> None:
    broker = tools.broker(ordering="key")

    async def main() -> None:
        broker.publish(8)
        consumer = AsyncLoopConsumer(BatchedKeys(broker), concurrency=2)
        go = asyncio.Event()
        handled: list[int] = []

        async def handler(message: Message) -> None:
            handled.append(message["n"])
            if message["n"] == 1:
                await go.wait()

        task = asyncio.create_task(consumer.run(handler))
        await until(lambda: consumer._run is not None and any(consumer._run._busy.values()))
        draining = asyncio.create_task(consumer.shutdown())
        await asyncio.sleep(1)
        go.set()
        await draining
        await task
        assert handled == [0, 1]
        assert broker.acked() == [0, 1]
        assert broker.leased() == []

    tools.run(main())
    broker.check()


def test_other_keys_go_on_while_one_is_busy(tools: type[Toolbox]) -> None:
    broker = tools.broker(ordering="key")

    async def main() -> None:
        async def handler(message: Message) -> None:
            if message.key == "slow":
                await go.wait()
            order.append(message.key or "")

        go = asyncio.Event()
        order: list[str] = []
        broker.publish(3, "slow")
        broker.publish(10, "quick")
        consumer = AsyncLoopConsumer(BatchedKeys(broker), concurrency=2)
        task = asyncio.create_task(consumer.run(handler))
        await until(lambda: order.count("quick") == 10, 0.01)
        assert order.count("slow") == 0
        go.set()
        await until(lambda: consumer.processed == 13, 0.01)
        await consumer.shutdown()
        await task
        assert order[-3:] == ["slow"] * 3

    tools.run(main())
    broker.check()


# -- numbers ---------------------------------------------------------------------------------


def test_the_rate_is_that_of_the_last_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    consumer = AsyncLoopConsumer(memory())
    assert consumer.rate == 0.0
    for n in range(100):
        clock.now = n / 10
        consumer._finished.append(clock.now)
    assert consumer.rate == pytest.approx(10.0)
    clock.now += 5.0
    assert consumer.rate == pytest.approx(5.1)
    clock.now += 100.0
    assert consumer.rate == 0.0
    for _ in range(20_000):
        clock.now += 0.00005
        consumer._finished.append(clock.now)
    assert consumer.rate == pytest.approx(20_000, rel=0.01)


def test_numbers_can_be_read_from_another_thread_at_any_time() -> None:
    async def main() -> None:
        async with memory() as backend:
            await backend.publish_many([{}] * 500, key="k")
            consumer = AsyncLoopConsumer(backend, concurrency=4)
            # Many, so that reading them takes longer than a thread's turn.
            consumer._finished.extend([time.monotonic()] * 9_000)
            stop = threading.Event()
            problems: list[BaseException] = []

            def look() -> None:
                try:
                    while not stop.is_set():
                        assert consumer.rate > 0
                        assert 0 <= consumer.in_flight <= 4
                except BaseException as error:
                    problems.append(error)

            thread = threading.Thread(target=look)
            thread.start()
            await settled(consumer, Recorder(), lambda: consumer.processed == 500)
            stop.set()
            thread.join()
            assert problems == []
            assert consumer.rate == pytest.approx(950.0)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        real(main())
    finally:
        sys.setswitchinterval(interval)
