"""Failures are retried as the policy says."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

import pytest

from abe.backends.message_queue.base import EventConsumer
from abe.backends.message_queue.consumer import AsyncLoopConsumer, RetryPolicy
from abe.backends.message_queue.handling import verdicts as module
from abe.errors import ConfigurationError, InvalidKeyError, Retry
from tests.unit_test.consumer.support import STEADY, Recorder, Scripted, memory, settled

if TYPE_CHECKING:
    from tests.support.scripted_broker import Broker


async def test_retry_comes_back_after_the_delay_it_asks_for(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    broker.publish()
    consumer = AsyncLoopConsumer(Scripted(broker))
    handler = Recorder(Retry(delay=70.0), Retry(0.0))
    await settled(consumer, handler, lambda: consumer.processed, step=5.0)
    assert handler.attempts == [1, 2, 3]
    assert handler.gaps == pytest.approx([70.0, 0.0], abs=0.1)
    assert handler.gaps[0] >= 70.0
    assert (consumer.failed, consumer.retried, consumer.dead) == (2, 2, 0)
    assert broker.records[0].outcomes == ["nack", "nack", "ack"]
    told = [(r.levelname, r.getMessage().partition(" (")[0]) for r in caplog.records]
    assert told == [
        ("INFO", "the handler asks for a retry; trying again in 70 s"),
        ("INFO", "the handler asks for a retry; trying again in 0 s"),
    ]


@pytest.mark.parametrize("delay", [None, -1.0, math.nan])
async def test_retry_without_a_usable_delay_leaves_it_to_the_policy(
    delay: float | None,
    broker: Broker,
) -> None:
    broker.publish()
    consumer = AsyncLoopConsumer(Scripted(broker), retry=STEADY)
    handler = Recorder(Retry(delay))
    await settled(consumer, handler, lambda: consumer.processed)
    assert handler.gaps == pytest.approx([1.0], abs=0.1)


async def test_other_exceptions_back_off_up_to_a_limit_and_then_go_to_the_dead_letters(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
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
    records = [r for r in caplog.records if r.name == module.__name__]
    assert [r.getMessage() for r in records] == [
        *(
            f"handler failed; trying again in {delay} s "
            f"(backend=scripted group=g key=k id=id-0 attempt={attempt})"
            for attempt, delay in enumerate((1, 2, 3, 3), start=1)
        ),
        "handler failed; no attempts left (backend=scripted group=g key=k id=id-0 attempt=5)",
    ]
    assert [record.levelno for record in records] == [*[logging.WARNING] * 4, logging.ERROR]
    for record in records:
        assert record.exc_info is not None
        assert isinstance(record.exc_info[1], ValueError)
        fields = ("scripted", "g", "k", "id-0")
        assert tuple(record.__dict__[f] for f in ("backend", "group", "key", "id")) == fields


@pytest.mark.parametrize("capabilities", [{"nack_delay": 5.0}])
async def test_a_delay_is_capped_at_what_the_backend_can(broker: Broker) -> None:
    broker.publish()
    consumer = AsyncLoopConsumer(Scripted(broker))
    handler = Recorder(Retry(60.0))
    await settled(consumer, handler, lambda: consumer.processed)
    assert handler.gaps == pytest.approx([5.0], abs=0.1)


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
