"""Messages whose attempts are exhausted become dead letters."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from abe.backends.message_queue.consumer import AsyncLoopConsumer, RetryPolicy
from abe.backends.message_queue.service.memory import MemoryBackend
from abe.errors import ConnectionLostError, PublishError, Reject
from tests.support.scripted_broker import Broker
from tests.unit_test.consumer.support import (
    FAST,
    STEADY,
    Recorder,
    Scripted,
    announced,
    settled,
    until,
)


async def test_without_dead_letters_it_is_logged_as_an_error_and_announced_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker = Broker(reject=False)
    broker.publish(3)
    consumer = AsyncLoopConsumer(Scripted(broker), retry=FAST)
    await settled(consumer, Recorder(*[ValueError("no")] * 9), lambda: consumer.dead == 3)
    assert [r.outcomes[-1] for r in broker.records] == ["ack"] * 3
    assert consumer.processed == 0
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
async def test_with_a_dead_letter_key_it_is_published_there_and_never_received(
    headers: bool, caplog: pytest.LogCaptureFixture
) -> None:
    broker = Broker(reject=False, headers=headers, keys="consumer")
    backend = Scripted(broker)
    broker.publish(2)
    consumer = AsyncLoopConsumer(backend, retry=FAST, keys="k", dead_letter_key="failed.orders")
    handler = Recorder(*[ValueError("no")] * 6)
    await settled(consumer, handler, lambda: not broker.unsettled())
    assert set(handler.numbers) == {0, 1}
    assert len(handler.messages) == 6
    assert consumer.dead == 2
    assert [r.outcome for r in broker.records] == ["ack"] * 2
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


async def test_a_dead_letter_is_published_before_the_message_is_acked() -> None:
    broker = Broker(reject=False, keys="consumer")
    backend = Scripted(broker)
    (record,) = broker.publish()
    consumer = AsyncLoopConsumer(backend, keys="k", dead_letter_key="dead")
    outcomes: list[str] = []
    original = backend.publish

    async def publish(key: str, payload: dict[str, Any], **extras: Any) -> None:
        outcomes.append(record.outcome)
        await original(key, payload, **extras)
        outcomes.append(record.outcome)

    backend.publish = publish  # type: ignore[method-assign]
    await settled(consumer, Recorder(Reject("x")), lambda: not broker.unsettled())
    assert outcomes == ["", ""]


async def test_while_the_broker_is_away_a_dead_letter_is_tried_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker = Broker(reject=False, keys="consumer")
    backend = Scripted(broker)
    backend.refusals += [
        ConnectionLostError("away"),
        TimeoutError(),
        PublishError("full", retryable=True),
    ]
    broker.publish()
    consumer = AsyncLoopConsumer(backend, retry=STEADY, keys="k", dead_letter_key="dead")
    handler = Recorder(Reject("x"))
    loop = asyncio.get_running_loop()
    started = loop.time()
    await settled(consumer, handler, lambda: consumer.dead)
    assert loop.time() - started == pytest.approx(6.0, abs=0.1)
    assert len(handler.messages) == 1
    assert len(backend.published) == 1
    assert broker.records[0].outcomes == ["ack"]
    broker.check()
    texts = [r.getMessage() for r in caplog.records if "cannot publish" in r.getMessage()]
    assert [t.partition(" (")[0] for t in texts] == [
        f"cannot publish to 'dead'; trying again in {n} s" for n in (1, 2, 3)
    ]


@pytest.mark.parametrize("how", ["shutdown", "cancel"])
async def test_a_dead_letter_that_cannot_be_published_is_released_at_the_end(how: str) -> None:
    broker = Broker(reject=False, keys="consumer")
    backend = Scripted(broker)
    backend.refusals += [ConnectionLostError("away")] * 1000
    broker.publish()
    consumer = AsyncLoopConsumer(backend, retry=STEADY, keys="k", dead_letter_key="dead")
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
    broker.check()


async def test_a_dead_letter_that_is_refused_permanently_is_dropped_and_the_run_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker = Broker(reject=False, keys="consumer")
    backend = Scripted(broker)
    backend.refusals.append(PublishError("too large"))
    broker.publish(2)
    consumer = AsyncLoopConsumer(backend, keys="k", dead_letter_key="dead")
    await settled(consumer, Recorder(Reject("x")), lambda: not broker.unsettled())
    assert (consumer.dead, consumer.processed) == (1, 1)
    broker.check()
    errors = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert [text.partition(" (")[0] for text in errors] == [
        "cannot be published to 'dead'",
        "dropped: x",
    ]


async def test_deliveries_alone_give_no_message_up(broker: Broker) -> None:
    """The broker may count releases, crashes of others, and answers lost on the way."""
    first, second = broker.publish(2)
    first.failed, second.failed = 5, 20
    consumer = AsyncLoopConsumer(Scripted(broker), retry=FAST)
    handler = Recorder()
    await settled(consumer, handler, lambda: not broker.unsettled())
    assert handler.attempts == [6, 21]
    assert (first.outcome, second.outcome) == ("ack", "ack")
    assert (consumer.processed, consumer.dead, consumer.failed) == (2, 0, 0)


async def test_deliveries_that_reached_no_handler_leave_its_attempts() -> None:
    """A message whose lease lapsed five times in a buffer has its first failure like any other."""
    async with MemoryBackend("exhausted.unhandled", lease=1000.0) as backend:
        await backend.publish("k", {"n": 1})
        for _ in range(5):
            async with backend.consume(prefetch=1) as stream:
                await anext(stream)
                backend._store.advance_time(1001.0)
        handler = Recorder(*(ValueError() for _ in range(9)))
        policy = RetryPolicy(max_attempts=5, base=0.0)
        consumer = AsyncLoopConsumer(backend, retry=policy)
        running = asyncio.create_task(consumer.run(handler))
        await until(lambda: consumer.dead == 1)
        await consumer.shutdown()
        await running
        assert handler.attempts == [6, 7, 8]
