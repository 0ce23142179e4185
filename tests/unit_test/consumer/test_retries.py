"""Where the broker cannot delay, the consumer waits in process."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from abe.backends.message_queue.base import Outcome
from abe.backends.message_queue.consumer import AsyncLoopConsumer, RetryPolicy
from abe.errors import Retry
from tests.support.scripted_broker import Broker
from tests.unit_test.consumer.support import FAST, Recorder, Scripted, settled, until


@pytest.mark.parametrize("declared", [{"nack_delay": 0.0}, {"attempts": "none"}])
async def test_where_the_broker_cannot_delay_the_consumer_waits_and_keeps_the_lease(
    declared: dict[str, Any],
) -> None:
    broker = Broker(**declared)
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
    broker.check()


@pytest.mark.parametrize("capabilities", [{"nack_delay": 0.0}])
async def test_in_process_retries_end_like_all_others(broker: Broker) -> None:
    broker.publish()
    consumer = AsyncLoopConsumer(Scripted(broker), retry=FAST)
    handler = Recorder(*[ValueError()] * 3)
    await settled(consumer, handler, lambda: consumer.dead)
    assert broker.records[0].outcomes == ["reject"]
    assert (consumer.failed, consumer.retried) == (3, 2)


@pytest.mark.parametrize("capabilities", [{"nack_delay": 0.0}])
async def test_a_message_whose_lease_is_lost_while_a_retry_waits_is_left_to_its_next_delivery(
    broker: Broker,
) -> None:
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


@pytest.mark.parametrize("how", ["shutdown", "cancel"])
@pytest.mark.parametrize("capabilities", [{"nack_delay": 0.0}])
async def test_stopping_while_a_retry_waits_releases_at_once(how: str, broker: Broker) -> None:
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
