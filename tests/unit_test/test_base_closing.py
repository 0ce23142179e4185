"""Closing: once, with one error, and never in place of the exception of the block."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import ClassVar, Self

import pytest

import abe
from abe.backends.message_queue.base import (
    BackendOperations,
    BaseBackend,
    Capabilities,
    KeyFilter,
    Outgoing,
    Receiver,
    closing,
)
from abe.errors import ConnectionLostError
from tests.support.scripted_broker import Broker

RAISED = [ZeroDivisionError, asyncio.CancelledError, KeyboardInterrupt]


class Failing(BaseBackend):
    """Cannot be closed without an error."""

    name: ClassVar[str] = "failing"
    loop_bound = False
    capabilities = Capabilities()

    @classmethod
    def from_env(cls) -> Self:
        return cls()

    async def _send(self, items: Sequence[Outgoing]) -> None:
        raise NotImplementedError

    def _receiver(self, group: str | None, keys: KeyFilter) -> Receiver:
        raise NotImplementedError

    async def _disconnect(self) -> None:
        raise PermissionError("read only")


def opened(how: str) -> BackendOperations:
    """One of the three asynchronous ways to hold a backend."""
    backend = Failing()
    if how == "backend":
        return backend
    return abe.aconnect(backend) if how == "aconnect" else abe.connect(backend).aio


@pytest.mark.parametrize("how", ["backend", "aconnect", "aio"])
class TestAsync:
    """``async with`` around a backend."""

    @pytest.mark.parametrize("raised", RAISED)
    def test_the_exception_of_the_block_is_raised_and_the_other_logged(
        self, how: str, raised: type[BaseException], caplog: pytest.LogCaptureFixture
    ) -> None:
        async def main() -> None:
            with pytest.raises(raised):
                async with opened(how):
                    raise raised

        asyncio.run(main())
        assert_logged(caplog)

    def test_a_timeout_around_it_stays_one(
        self, how: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def main() -> None:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0), opened(how):
                    await asyncio.Event().wait()

        asyncio.run(main())
        assert_logged(caplog)

    def test_without_an_exception_closing_tells(self, how: str) -> None:
        async def main() -> None:
            async with opened(how):
                pass

        with pytest.raises(PermissionError, match="read only"):
            asyncio.run(main())


@pytest.mark.parametrize("raised", RAISED)
@pytest.mark.parametrize("what", ["backend", "stream"])
def test_the_facade_raises_the_exception_of_the_block(
    what: str,
    raised: type[BaseException],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """``with`` around `connect`, and around a stream."""
    held: AbstractContextManager[object]
    if what == "backend":
        held = abe.connect(Failing())
    else:
        queue = abe.connect("memory", env={"ABE_MEMORY_NAME": f"closing-{raised.__name__}"})
        held = queue.consume()

        def fail() -> None:
            raise PermissionError("read only")

        monkeypatch.setattr(held, "close", fail)
    with pytest.raises(raised), held:
        raise raised
    assert_logged(caplog)


def assert_logged(caplog: pytest.LogCaptureFixture) -> None:
    (record,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert record.getMessage().startswith("closing ")
    assert "read only" in caplog.text


def scripted(broker: Broker) -> BaseBackend:
    """A backend whose streams read from a scripted broker."""

    class Scripted(Failing):
        name = "scripted"
        capabilities = broker.capabilities

        def _receiver(self, group: str | None, keys: KeyFilter) -> Receiver:
            return broker.receiver()

        async def _disconnect(self) -> None:
            pass

    return Scripted()


async def test_what_several_streams_could_not_deliver_is_counted_in_one_error(
    broker: Broker,
) -> None:
    broker.publish(2)
    backend = scripted(broker)
    streams = [backend.consume(prefetch=1) for _ in range(2)]
    messages = [await anext(stream) for stream in streams]
    broker.cut(down=ConnectionRefusedError("down"))
    await asyncio.sleep(20)
    for message in messages:
        await message.ack()
    with pytest.raises(ConnectionLostError, match="closed with 2 settlements") as caught:
        await backend.aclose()
    assert caught.value.undelivered == 2
    assert isinstance(caught.value.__cause__, ConnectionLostError)


async def test_what_one_stream_could_not_deliver_is_counted_whole(broker: Broker) -> None:
    """Also where it is more than is sent at once."""
    broker.publish(600)
    stream = broker.stream()
    for message in await stream.receive(600):
        await message.ack()
    broker.cut(down=ConnectionRefusedError("down"))
    with pytest.raises(ConnectionLostError) as caught:
        await stream.aclose()
    assert caught.value.undelivered == 600 - len(broker.acked())


async def test_several_streams_that_fail_differently_are_counted(broker: Broker) -> None:
    broker.refuse = lambda settlement: PermissionError("read only")
    broker.publish(2)
    backend = scripted(broker)
    streams = [backend.consume(prefetch=1) for _ in range(2)]
    for stream in streams:
        await (await anext(stream)).ack()
    with pytest.raises(abe.AbeError, match="2 streams failed") as caught:
        await backend.aclose()
    assert isinstance(caught.value.__cause__, PermissionError)


class Slow(Failing):
    """Is closed once `proceed` is set."""

    def __init__(self, *, blocks: bool) -> None:
        super().__init__()
        self.blocks = blocks
        self.began = threading.Event()
        self.proceed = threading.Event()
        self.ended = False

    async def _disconnect(self) -> None:
        self.began.set()
        if self.blocks:
            self.proceed.wait()
        else:
            await asyncio.to_thread(self.proceed.wait)
        self.ended = True

    def close_elsewhere(self, view: BackendOperations | None = None) -> threading.Thread:
        """Close on an event loop of another thread; returns once that is under way."""
        held = view or self
        thread = threading.Thread(target=lambda: asyncio.run(held.aclose()))
        thread.start()
        self.began.wait()
        return thread


@pytest.mark.parametrize("view", [False, True])
def test_closing_on_a_second_loop_returns_when_it_is_closed(view: bool) -> None:
    backend = Slow(blocks=False)
    held = abe.aconnect(backend) if view else backend
    thread = backend.close_elsewhere(held)

    async def second() -> None:
        closing = asyncio.ensure_future(held.aclose())
        for _ in range(20):
            await asyncio.sleep(0)
        assert not closing.done()
        backend.proceed.set()
        await closing
        assert backend.ended

    try:
        asyncio.run(second())
    finally:
        backend.proceed.set()
        thread.join()


def test_closing_on_a_second_loop_does_not_wait_for_ever(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The first may be blocked, perhaps by who waits here."""
    monkeypatch.setattr(closing, "PATIENCE", 0.0)
    backend = Slow(blocks=True)
    thread = backend.close_elsewhere()
    try:
        asyncio.run(backend.aclose())
        assert not backend.ended
    finally:
        backend.proceed.set()
        thread.join()
    assert "still being closed on another event loop" in caplog.text


class UnprintableError(ConnectionError):
    """Its text cannot be had."""

    def __str__(self) -> str:
        raise ValueError("no text")


async def test_an_outage_without_a_text_is_one(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, and closing meanwhile is no error."""
    stream = broker.stream()
    waiting = asyncio.create_task(anext(stream, None))
    await asyncio.sleep(1)
    broker.down = UnprintableError()
    broker.fault("receive", error=UnprintableError())
    broker.receivers[0].wake()
    await asyncio.sleep(60)
    await stream.aclose()
    assert await waiting is None
    assert "UnprintableError: (its text cannot be printed)" in caplog.text
