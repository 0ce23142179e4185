"""What becomes of a message is decided by what its handler does."""

from __future__ import annotations

import logging
import operator
import traceback
from collections import deque
from typing import TYPE_CHECKING, Any

import pytest

from abe.backends.message_queue.consumer import AsyncLoopConsumer, RetryPolicy
from abe.backends.message_queue.handling import verdicts as module
from abe.errors import Reject
from tests.unit_test.consumer.support import Recorder, Scripted, memory, settled

if TYPE_CHECKING:
    from abe.backends.message_queue.base import Message
    from tests.support.scripted_broker import Broker


async def test_returned_is_acked(broker: Broker) -> None:
    broker.publish(20)
    consumer = AsyncLoopConsumer(Scripted(broker), "g")
    handler = Recorder()
    await settled(consumer, handler, lambda: consumer.processed == 20)
    assert handler.numbers == list(range(20))
    assert broker.acked() == list(range(20))
    assert (consumer.failed, consumer.retried, consumer.dead) == (0, 0, 0)
    assert consumer.last_error is None


async def test_reject_goes_to_the_dead_letters_with_the_reason(
    caplog: pytest.LogCaptureFixture,
) -> None:
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
    (record,) = [r for r in caplog.records if r.name == module.__name__]
    assert record.levelno == logging.INFO
    assert record.getMessage().startswith("rejected by the handler: no such customer (backend=")


async def test_a_reason_that_is_an_exception_is_kept_as_text() -> None:
    """Neither ``raise Reject(error)`` nor ``message.reject(error)`` loses the message."""
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


@pytest.mark.parametrize("threaded", [True, False])
async def test_the_traceback_begins_in_the_handler(
    threaded: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(message: Any) -> None:
        raise ValueError("no price")

    async def handler(message: Message) -> None:
        fail(message)

    async with memory() as backend:
        await backend.publish("k", {})
        consumer = AsyncLoopConsumer(backend, retry=RetryPolicy(max_attempts=1))
        await settled(consumer, fail if threaded else handler, lambda: consumer.dead)
    (record,) = [r for r in caplog.records if r.name == module.__name__]
    assert record.exc_info is not None
    frames = [frame.name for frame in traceback.extract_tb(record.exc_info[2])]
    assert frames == (["fail"] if threaded else ["handler", "fail"])


async def test_the_traceback_is_whole_if_it_does_not_reach_a_handler_in_python() -> None:
    async with memory() as backend:
        await backend.publish("k", {})
        consumer = AsyncLoopConsumer(backend, retry=RetryPolicy(max_attempts=1))
        await settled(consumer, operator.itemgetter("missing"), lambda: consumer.dead)
        assert isinstance(consumer.last_error, KeyError)
        assert consumer.last_error.__traceback__ is not None


async def test_the_reason_of_a_dead_letter_says_what_was_raised_and_where() -> None:
    async def handler(message: Message) -> None:
        raise KeyError("customer")

    async with memory() as backend:
        await backend.publish("k", {})
        consumer = AsyncLoopConsumer(backend, retry=RetryPolicy(max_attempts=1))
        await settled(consumer, handler, lambda: consumer.dead)
        (dead,) = await backend.dead_letters()
        assert dead.headers["abe-dead-reason"] == "KeyError: 'customer'"
        assert 'raise KeyError("customer")' in dead.headers["abe-dead-traceback"]
        assert dead.headers["abe-dead-attempts"] == "1"


@pytest.mark.parametrize("fails", [False, True])
async def test_what_the_handler_settled_stays_settled(
    fails: bool, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(message: Message) -> None:
        await getattr(message, script[message["n"]].popleft())()
        if fails:
            raise ValueError

    script = [deque(["ack"]), deque(["reject"]), deque(["nack", "release", "ack"])]
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
    text = "handler failed; the handler settled it"
    assert sum(text in r.getMessage() for r in caplog.records) == (5 if fails else 0)


async def test_an_exception_that_is_no_exception_is_a_failure_like_any_other(
    broker: Broker,
) -> None:
    class Abort(BaseException):
        pass

    broker.publish(3)
    consumer = AsyncLoopConsumer(Scripted(broker), concurrency=2)
    await settled(consumer, Recorder(Abort()), lambda: consumer.processed == 3)
    assert [r.outcomes for r in broker.records] == [["nack", "ack"], ["ack"], ["ack"]]
    assert consumer.failed == consumer.retried == 1
    assert isinstance(consumer.last_error, Abort)
    assert consumer.in_flight == 0
