"""Every kind of handler is run in its way; what cannot handle is refused."""

from __future__ import annotations

import contextvars
import functools
import threading
from typing import TYPE_CHECKING, Any

import pytest

from abe.backends.message_queue.base import Message, SyncMessage
from abe.backends.message_queue.consumer import AsyncLoopConsumer, RetryPolicy
from tests.unit_test.consumer.support import (
    AsyncObject,
    Scripted,
    memory,
    note,
    real,
    seen,
    settled,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.scripted_broker import Broker


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
async def test_what_cannot_handle_is_refused_before_anything_is_opened(
    handler: Any,
    text: str,
    broker: Broker,
) -> None:
    backend = Scripted(broker)
    consumer = AsyncLoopConsumer(backend)
    with pytest.raises(TypeError) as caught:
        await consumer.run(handler)
    assert str(caught.value) == text
    assert backend.opened == []


@pytest.mark.parametrize("sync", [False, True], ids=["async", "sync that returns a coroutine"])
def test_context_variables_end_with_the_handling_that_sets_them(sync: bool) -> None:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)
    found: list[int] = []

    async def handler(message: Any) -> None:
        found.append(variable.get())
        variable.set(1)

    async def main() -> None:
        async with memory() as backend:
            await backend.publish_many([{}] * 3, key="k")
            consumer = AsyncLoopConsumer(backend)
            chosen = (lambda message: handler(message)) if sync else handler
            await settled(consumer, chosen, lambda: consumer.processed == 3)

    real(main())
    assert found == [0, 0, 0]


def test_a_sync_message_can_be_settled_on_the_loop() -> None:
    """Recording never blocks, so a handler that returns a coroutine may do it too."""

    async def settle(message: SyncMessage) -> None:
        message.ack()

    async def main() -> None:
        async with memory() as backend:
            await backend.publish("k", {})
            consumer = AsyncLoopConsumer(backend, retry=RetryPolicy(max_attempts=1))
            await settled(consumer, lambda m: settle(m), lambda: consumer.processed)

    real(main())
