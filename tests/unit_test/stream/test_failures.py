"""A permanent failure surfaces once, wherever it is noticed."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Self

import pytest

from abe.backends.message_queue.base import BaseBackend, KeyFilter, Outgoing, Receiver
from tests.unit_test.stream.support import LEASE, RESET, breathe, call, now

if TYPE_CHECKING:
    from collections.abc import Sequence

    from abe.types import ConsumerGroup
    from tests.support.scripted_broker import Broker
    from tests.support.virtual_loop import VirtualRun


@pytest.mark.parametrize("where", ["anext", "enter", "take"])
async def test_an_open_refused_for_good_surfaces_at_once(broker: Broker, where: str) -> None:
    """Refused credentials are an error, not an outage, and nothing is left behind."""
    broker.down = PermissionError("wrong password")

    stream = broker.stream()
    started = now()
    with pytest.raises(PermissionError, match="wrong password"):
        await call(stream, where)
    assert now() == started
    await breathe()
    assert not [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
    await stream.aclose()


@pytest.mark.parametrize("noticed_by", ["receive", "settle", "extend"])
async def test_a_reconnection_refused_for_good_surfaces(broker: Broker, noticed_by: str) -> None:
    """Whoever notices the outage, an error that no retry cures reaches the caller."""
    broker.publish(2)
    stream = broker.stream(prefetch=1)
    message = await anext(stream)
    broker.fault(noticed_by, error=RESET)
    broker.down = PermissionError("wrong password")
    if noticed_by == "extend":
        await asyncio.sleep(LEASE)
    elif noticed_by == "settle":
        await message.ack()
        await asyncio.sleep(1)
    with pytest.raises(PermissionError, match="wrong password"):
        await anext(stream)
    await stream.aclose()


async def test_a_read_that_fails_for_good_surfaces_once(broker: Broker) -> None:
    """The error is raised by the next ``__anext__``; ``aclose`` does not raise it again."""
    broker.publish(1)
    broker.fault("receive", error=ValueError("no such group"))
    stream = broker.stream()
    with pytest.raises(ValueError, match="no such group"):
        await anext(stream)
    await stream.aclose()
    await stream.aclose()


async def test_what_a_failing_take_had_collected_is_given_back_and_not_handed_over(
    broker: Broker,
) -> None:
    """Others have it by then."""
    broker.publish(2)
    stream = broker.stream()
    task = asyncio.create_task(stream.take(5))
    await asyncio.sleep(1)
    broker.fault("receive", error=PermissionError("revoked"))
    broker.receivers[0].wake()
    with pytest.raises(PermissionError):
        await task
    assert [record.outcomes for record in broker.records] == [["release"]] * 2
    assert stream.closed
    assert await anext(stream, None) is None


async def test_a_failure_nobody_has_seen_is_raised_by_aclose(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """``aclose`` is the last chance to tell; who was told need not read it in the log."""
    broker.publish(1)
    stream = broker.stream()
    await anext(stream)
    broker.fault("extend", error=ValueError("no such group"))
    await asyncio.sleep(LEASE)
    with pytest.raises(ValueError, match="no such group"):
        await stream.aclose()
    await stream.aclose()
    assert [r for r in caplog.records if r.levelno >= logging.ERROR] == []


async def test_a_failure_of_a_dropped_stream_is_logged(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """Where nobody is left to be told, the log is."""
    broker.refuse = lambda settlement: PermissionError("read only")
    broker.publish(1)
    stream = broker.stream()
    await (await anext(stream)).ack()
    del stream
    await asyncio.sleep(1)
    (record,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert "no caller is left to see the error" in record.getMessage()
    assert "read only" in caplog.text


async def test_closing_the_backend_tells_of_acks_that_were_refused(broker: Broker) -> None:
    """A backend that closes streams for its user raises what their ``aclose`` would have."""
    broker.refuse = lambda settlement: PermissionError("read only")

    class Backend(BaseBackend):
        name = "scripted"
        capabilities = broker.capabilities

        @classmethod
        def from_env(cls) -> Self:
            return cls()

        async def _send(self, items: Sequence[Outgoing]) -> None:
            raise NotImplementedError

        def _receiver(self, group: ConsumerGroup, keys: KeyFilter) -> Receiver:
            return broker.receiver()

    broker.publish(1)
    backend = Backend()
    stream = backend.consume()
    await (await anext(stream)).ack()
    with pytest.raises(PermissionError, match="read only"):
        await backend.aclose()
    await stream.aclose()


def test_the_error_of_the_loop_body_is_not_hidden_by_one_of_the_stream(
    run: VirtualRun, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception in ``async with`` leaves it unchanged; the stream's failure is logged."""
    broker.refuse = lambda settlement: PermissionError("read only")

    async def main() -> None:
        broker.publish(2)
        async with broker.stream() as stream:
            await (await anext(stream)).ack()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(main())
    assert "read only" in caplog.text
