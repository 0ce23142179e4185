"""A stream belongs to one event loop and ends with it."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from typing import TYPE_CHECKING, Any

import pytest

from abe.backends.message_queue.base.subscription import subscription as engine
from abe.errors import LoopError
from tests.support.virtual_loop import VirtualLoop, VirtualRun
from tests.unit_test.stream.support import call, now, several

if TYPE_CHECKING:
    from abe.backends.message_queue.base import Message, MessageStream
    from tests.support.scripted_broker import Broker


def test_asyncio_run_ends_at_once_where_nobody_took_over_a_message(
    run: VirtualRun, broker: Broker
) -> None:
    """Only the owner of a detached message is given time to settle it."""
    kept: list[Any] = []

    async def main() -> float:
        broker.publish(1)
        broker.cancellable = True
        stream = broker.stream()
        await anext(stream)
        kept.extend((stream, asyncio.get_running_loop()))
        return now()

    ended = run(main(), tidy=False)
    assert kept[1].now == ended
    assert broker.records[0].outcomes == ["release"]


@pytest.mark.parametrize("how", ["dropped", "kept", "closing", "waiting", "settling"])
def test_asyncio_run_gives_back_what_is_left(run: VirtualRun, broker: Broker, how: str) -> None:
    """When ``asyncio.run`` returns, acks are recorded and the message in hand is released."""
    kept: list[Any] = []

    async def main() -> None:
        broker.publish(40)
        stream = broker.stream()
        for _ in range(20):
            await anext(stream)
        if how == "dropped":
            with pytest.warns(ResourceWarning):
                del stream
        elif how == "closing":
            kept.append(asyncio.create_task(stream.aclose()))
            await asyncio.sleep(0)
        elif how == "settling":
            broker.latency = 1.0
            await anext(stream)
            await asyncio.sleep(0.06)
        elif how == "waiting":
            kept.append(asyncio.create_task(stream.take(100)))
            await asyncio.sleep(1)
        if how != "dropped":
            kept.append(stream)
        broker.cancellable = True

    run(main(), tidy=False)
    lent = [record.seq for record in broker.records if record.lease is not None]
    assert lent == []
    assert broker.acked() == list(range({"settling": 20, "waiting": 20}.get(how, 19)))
    assert {r.failed for r in broker.records} == {0}


@pytest.mark.parametrize("ticks", range(8))
def test_asyncio_run_ending_at_any_point_of_closing_gives_everything_back(
    run: VirtualRun, broker: Broker, ticks: int
) -> None:
    """Between ``aclose`` and its end no moment is too early or too late for the loop to end."""
    kept: list[Any] = []

    async def main() -> None:
        broker.publish(40)
        stream = broker.stream()
        for _ in range(20):
            await anext(stream)
        kept.append(asyncio.create_task(stream.aclose()))
        for _ in range(ticks):
            await asyncio.sleep(0)
        broker.cancellable = True

    run(main(), tidy=False)
    assert [record.seq for record in broker.records if record.lease is not None] == []
    assert broker.acked() == list(range(19))


def test_a_failed_stream_left_open_is_wound_up_by_asyncio_run(
    run: VirtualRun, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """A stream whose broker refused an ack still gives back the messages in hand, and says so."""
    kept: list[MessageStream] = []
    broker.refuse = lambda settlement: (
        PermissionError("read only") if settlement.outcome == "ack" else None
    )

    async def main() -> None:
        broker.publish(3)
        kept.append(broker.stream())
        first, *_ = await kept[0].take(3)
        await first.ack()
        await asyncio.sleep(1)

    run(main(), tidy=False)
    assert [r.outcomes for r in broker.records] == [[], ["release"], ["release"]]
    texts = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert texts == ["a stream of backend scripted failed, and no caller is left to see the error"]


def test_a_failure_that_was_told_is_not_logged_at_the_end_of_the_loop(
    run: VirtualRun, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    kept: list[MessageStream] = []
    broker.refuse = lambda settlement: PermissionError("read only")

    async def main() -> None:
        broker.publish(1)
        kept.append(broker.stream())
        await (await anext(kept[0])).ack()
        with pytest.raises(PermissionError):
            await kept[0].flush()

    run(main(), tidy=False)
    assert [r for r in caplog.records if r.levelno >= logging.ERROR] == []


def test_a_stream_that_outlives_its_loop_goes_quietly(run: VirtualRun, broker: Broker) -> None:
    """Dropping or closing a stream after its loop has ended is not an error."""
    kept: list[MessageStream] = []

    async def main() -> None:
        broker.publish(1)
        kept.append(broker.stream())
        await anext(kept[0])
        broker.cancellable = True

    async def close() -> None:
        await kept[0].aclose()

    run(main(), tidy=False)
    run(close())
    kept.clear()
    gc.collect()


@pytest.mark.parametrize("closed", [False, True])
def test_a_loop_that_is_closed_with_its_tasks_running_leaves_nothing_behind(
    closed: bool, broker: Broker
) -> None:
    """Nothing can be given back any more; at least nobody waits, and no engine is kept."""
    loop = VirtualLoop()
    kept: list[MessageStream] = []

    async def begin() -> None:
        broker.publish(1)
        kept.append(broker.stream())
        await anext(kept[0])

    loop.run_until_complete(begin())
    pumps = asyncio.all_tasks(loop)
    broker.cancellable = True
    loop.close()
    assert [e for e in engine._live if e.loop is loop]
    if closed:
        VirtualRun()(kept[0].aclose())
    with pytest.warns(ResourceWarning, match="was dropped with message id-0"):
        kept.clear()
    assert not [e for e in engine._live if e.loop is loop]
    for pump in pumps:
        pump.get_coro().close()
    broker.receivers.clear()


def test_closing_interrupted_by_the_end_of_the_loop_closes_the_connection(
    run: VirtualRun, broker: Broker
) -> None:
    """A disconnection that asyncio.run() interrupts is done again."""
    broker.fault("aclose", delay=5.0)
    kept: list[Any] = []

    async def main() -> None:
        broker.publish(1)
        stream = broker.stream()
        await anext(stream)
        kept.append(asyncio.create_task(stream.aclose()))
        await asyncio.sleep(1)

    run(main(), tidy=False)
    assert len(broker.called("aclose")) == 2


def test_a_replacement_interrupted_by_the_end_of_the_loop_closes_the_connection(
    run: VirtualRun, broker: Broker
) -> None:
    """So is the disconnection of a connection that was being replaced."""
    broker.fault("aclose", delay=3.0)
    kept: list[Any] = []

    async def main() -> None:
        broker.publish(1)
        kept.append(broker.stream())
        await anext(kept[0])
        broker.cancellable = True
        task = asyncio.create_task(kept[0].take(1))
        await asyncio.sleep(1)
        broker.cut()
        await asyncio.sleep(1)
        task.cancel()

    run(main(), tidy=False)
    assert [call.receiver for call in broker.called("aclose")].count(0) == 2


@pytest.mark.parametrize("method", ["anext", "take", "flush", "aclose", "enter"])
def test_a_stream_refuses_another_event_loop(run: VirtualRun, broker: Broker, method: str) -> None:
    """Used from another loop while its own runs, a stream raises `LoopError` and is unharmed."""
    caught: list[BaseException] = []

    async def misuse(stream: MessageStream, message: Message) -> None:
        try:
            await call(stream, method)
        except LoopError as error:
            caught.append(error)

    async def main() -> None:
        broker.publish(10)
        async with broker.stream() as stream:
            message = (await several(stream, 5))[-1]
            thread = threading.Thread(target=lambda: run(misuse(stream, message)))
            thread.start()
            thread.join()
            assert message.outcome is None
            assert await anext(stream) == {"n": 5}
            await stream.flush()
            assert broker.acked() == [0, 1, 2, 3, 4]

    run(main())
    assert len(caught) == 1
