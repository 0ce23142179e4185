"""Plain backends are consumed with what little they can do."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from abe.backends.message_queue.base import Capabilities, Message
from abe.backends.message_queue.consumer import AsyncLoopConsumer
from abe.errors import ConfigurationError, Reject, UnsupportedError
from tests.unit_test.consumer.support import (
    FAST,
    STEADY,
    Plain,
    Recorder,
    Scripted,
    announced,
    settled,
    until,
)

if TYPE_CHECKING:
    from tests.support.scripted_broker import Broker
    from tests.support.virtual_loop import VirtualRun


async def test_a_plain_backend_is_asked_for_nothing_more_than_the_group() -> None:
    backend = Plain({"n": 1}, ends=True)
    await AsyncLoopConsumer(backend, "billing").run(Recorder())
    await AsyncLoopConsumer(backend).run(Recorder())
    assert backend.opened == [((), {"group": "billing"}), ((), {"group": None})]


@pytest.mark.parametrize("capabilities", [{"keys": "consumer"}])
async def test_a_first_party_backend_is_asked_so_too_and_for_keys_only_if_given(
    broker: Broker,
) -> None:
    backend = Scripted(broker)
    for keys in (None, "a.*", ["b", "a"]):
        consumer = AsyncLoopConsumer(backend, "g", keys=keys)
        await settled(consumer, Recorder(), lambda: True)
    assert backend.opened == [
        {"group": "g"},
        {"group": "g", "keys": ("a.*",)},
        {"group": "g", "keys": ("a", "b")},
    ]


async def test_keys_on_a_plain_backend_are_unsupported_and_nothing_is_opened() -> None:
    backend = Plain()
    with pytest.raises(UnsupportedError, match="capability 'keys'"):
        await AsyncLoopConsumer(backend, keys="a").run(Recorder())
    assert backend.opened == []


async def test_a_plain_iterator_is_resumed_only_after_the_handler_and_its_end_ends_the_run() -> (
    None
):
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


async def test_on_a_plain_backend_failures_are_retried_in_process(
    caplog: pytest.LogCaptureFixture,
) -> None:
    backend = Plain({"n": 1}, {"n": 2}, ends=True)
    consumer = AsyncLoopConsumer(backend, retry=STEADY)
    handler = Recorder(*[ValueError("no")] * 4)
    await consumer.run(handler)
    assert handler.numbers == [1, 1, 1, 1, 2]
    assert handler.attempts == [1, 2, 3, 4, 1]
    assert handler.gaps == pytest.approx([1.0, 2.0, 3.0, 0.0], abs=0.1)
    assert backend.acked == [{"n": 1}, {"n": 2}]
    assert (consumer.processed, consumer.dead) == (1, 1)
    assert len(announced(caplog)) == 1
    assert announced(caplog)[0].startswith("backend Plain has no dead letters")


async def test_a_handlers_changes_reach_neither_a_retry_nor_the_dead_letter() -> None:
    async def handler(message: Message) -> None:
        metadata = (message.id, message.key, message.timestamp, message.attempt)
        seen.append(([*message["n"]], *metadata, dict(message.headers)))
        message["n"].append("changed")
        message.headers["secret"] = "x"  # type: ignore[index]
        message.id = message.key = "changed"
        message._time, message.attempt = 1.0, 0
        raise ValueError("no")

    seen: list[Any] = []
    original = Message({"n": [1]}, "id-1", "k", 5.0, headers={"a": "b"})
    backend = Plain(original, ends=True)
    consumer = AsyncLoopConsumer(backend, retry=FAST, dead_letter_key="dead")
    task = asyncio.create_task(consumer.run(handler))
    await until(lambda: backend.log)
    task.cancel()
    moment = datetime.fromtimestamp(5.0, UTC)
    assert seen == [([1], "id-1", "k", moment, attempt, {"a": "b"}) for attempt in (1, 2, 3)]
    assert backend.log == [("dead", {"n": [1]})]


async def test_what_a_backend_declares_counts_only_if_its_stream_can_do_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A plain iterator cannot nack or reject, whatever its backend declares."""
    backend = Plain({"n": 1}, {"n": 2}, ends=True)
    backend.capabilities = Capabilities(  # type: ignore[attr-defined]
        redelivery="message", release=True, reject=True, attempts="exact", nack_delay=60.0
    )
    consumer = AsyncLoopConsumer(backend, retry=FAST)
    handler = Recorder(*[ValueError("no")] * 3)
    await consumer.run(handler)
    assert handler.numbers == [1, 1, 1, 2]
    assert (consumer.processed, consumer.dead) == (1, 1)
    assert len(announced(caplog)) == 1


async def test_a_dead_letter_that_comes_back_ends_the_run_and_is_not_acked() -> None:
    """A mark tells, never the content: an equal message is handled."""
    bad = {"b": 2, "bad": True}
    backend = Plain(bad, bad)
    handler = Recorder(Reject("bad"))
    consumer = AsyncLoopConsumer(backend, dead_letter_key="dead")
    with pytest.raises(ConfigurationError, match="dead_letter_key 'dead' is received by"):
        await consumer.run(handler)
    assert backend.log == [("dead", bad)]
    assert [dict(message) for message in handler.messages] == [bad, bad]
    assert len(backend.acked) == 2


@pytest.mark.parametrize("how", ["shutdown", "cancel"])
async def test_a_plain_backend_keeps_what_was_not_finished(how: str) -> None:
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


async def test_a_message_lost_with_the_process_is_announced_if_several_are_in_flight(
    caplog: pytest.LogCaptureFixture,
) -> None:
    await AsyncLoopConsumer(Plain(ends=True), concurrency=2).run(Recorder())
    await AsyncLoopConsumer(Plain(ends=True)).run(Recorder())
    texts = [r.getMessage() for r in caplog.records if "no redelivery" in r.getMessage()]
    assert len(texts) == 1
    assert "up to 2 messages in flight may be lost" in texts[0]


def test_nothing_is_announced_where_nothing_is_lost(
    broker: Broker, run: VirtualRun, caplog: pytest.LogCaptureFixture
) -> None:
    broker.ended = True
    run(AsyncLoopConsumer(Scripted(broker), concurrency=4).run(Recorder()))
    assert caplog.records == []
