"""Dropped streams release their messages, and nothing keeps them alive."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import warnings
import weakref
from typing import TYPE_CHECKING, Any

import pytest

from tests.unit_test.stream.support import breathe, several, warned

if TYPE_CHECKING:
    from abe.backends.message_queue.base import MessageStream
    from tests.support.scripted_broker import Broker
    from tests.support.virtual_loop import VirtualRun


async def first_of(stream: MessageStream) -> None:
    async for _ in stream:
        break


def test_a_stream_dropped_with_a_message_in_hand_warns_and_releases_it(
    run: VirtualRun, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """``break`` without ``async with``: a warning names key and id, and the message comes back."""

    async def main() -> None:
        broker.publish(3, key="orders.eu")
        with pytest.warns(ResourceWarning, match=r"message id-0 of key 'orders.eu' unsettled"):
            await first_of(broker.stream())
        await asyncio.sleep(1)
        assert broker.leased() == []
        assert broker.records[0].outcomes == ["release"]

    run(main())
    (record,) = warned(caplog, "was dropped with message id-0 of key 'orders.eu'")
    assert record.__dict__["key"] == "orders.eu"


async def test_a_dropped_stream_is_released_when_warnings_are_errors(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``-W error`` does not keep a dropped stream from giving its messages back."""
    unraisable: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: unraisable.append(args.exc_type))

    broker.publish(1)
    stream = broker.stream()
    await anext(stream)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del stream
    assert unraisable == [ResourceWarning]
    await asyncio.sleep(1)
    assert broker.leased() == []


async def test_tasks_do_not_keep_a_stream_alive(broker: Broker) -> None:
    """A forgotten stream goes at once, whatever runs on its behalf."""
    broker.publish(30)
    stream = broker.stream()
    for _ in range(10):
        await (await anext(stream)).ack()
    await asyncio.sleep(1)
    gone = weakref.ref(stream)
    gc.disable()
    try:
        del stream
        assert gone() is None
    finally:
        gc.enable()
    await asyncio.sleep(1)
    assert broker.leased() == []


async def test_a_message_does_not_keep_its_stream_alive(broker: Broker) -> None:
    """A message kept by the caller refers to its stream weakly, settled or not."""
    broker.publish(1)
    stream = broker.stream()
    message = await anext(stream)
    gone = weakref.ref(stream)
    with pytest.warns(ResourceWarning):
        del stream
    assert gone() is None
    await asyncio.sleep(1)
    assert not await message.ack()


async def test_a_settled_message_leaves_no_cycle(broker: Broker) -> None:
    """Messages go when their last reference goes, without the garbage collector."""
    broker.publish(2)
    async with broker.stream() as stream:
        message = await anext(stream)
        gone = weakref.ref(message)
        await message.ack()
        await stream.flush()
        await anext(stream)
        broker.records[0].lease = broker.records[0].acked_by = None
        broker.calls.clear()
        gc.disable()
        try:
            del message
            assert gone() is None
        finally:
            gc.enable()


async def test_a_dropped_stream_without_a_message_in_hand_is_silent(broker: Broker) -> None:
    """Buffered messages are released without a warning: nobody has begun to process them."""
    broker.publish(40)
    stream = broker.stream()
    message = (await several(stream, 20))[-1]
    await message.ack()
    await breathe()
    assert len(broker.leased()) > 5
    del stream
    await asyncio.sleep(1)
    assert broker.leased() == []
    assert broker.acked() == list(range(20))


async def test_a_stream_dropped_in_another_thread_is_released(broker: Broker) -> None:
    """The garbage collector may run anywhere."""
    broker.publish(1)
    streams = [broker.stream()]
    await anext(streams[0])
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        thread = threading.Thread(target=streams.clear)
        thread.start()
        thread.join()
    await asyncio.sleep(1)
    assert broker.leased() == []
