"""The stream engine, obligation by obligation, against a scripted broker on a virtual clock."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import sys
import threading
import warnings
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

import pytest

from abe.backends.message_queue.base import (
    BaseBackend,
    EndOfStream,
    KeyFilter,
    Message,
    MessageStream,
    Outcome,
    Outgoing,
    Receiver,
    open_stream,
)
from abe.backends.message_queue.base.subscription import subscription as engine
from abe.errors import (
    AbeError,
    ConfigurationError,
    ConnectionLostError,
    LoopError,
    UnsupportedError,
)
from abe.types import ConsumerGroup

if TYPE_CHECKING:
    from tests.unit_test.conftest import Broker, Toolbox, VirtualRun

LEASE = 30.0
QUARTER = LEASE / 4
RESET = ConnectionLostError("connection reset by the script")


def now() -> float:
    return asyncio.get_running_loop().time()


async def breathe() -> None:
    """Let everything that can happen now happen."""
    for _ in range(20):
        await asyncio.sleep(0)


async def several(stream: MessageStream, count: int) -> list[Message]:
    """Ask for one message after the other."""
    return [await anext(stream) for _ in range(count)]


def warned(caplog: pytest.LogCaptureFixture, text: str) -> list[logging.LogRecord]:
    return [r for r in caplog.records if r.levelno == logging.WARNING and text in r.getMessage()]


# -- rule 1: settle on resume ------------------------------------------------------------------


def test_asking_for_the_next_message_acks_the_previous_one(run: VirtualRun, broker: Broker) -> None:
    """Asking for the next message acks the one before, and only that."""

    async def main() -> None:
        broker.publish(3)
        async with broker.stream() as stream:
            for n in range(3):
                message = await anext(stream)
                assert message == {"n": n}
                assert message.attempt == 1
                await stream.flush()
                assert broker.acked() == list(range(n))

    run(main())
    assert broker.unsettled() == [2]


def test_processing_does_not_ack_however_long_it_takes(run: VirtualRun, broker: Broker) -> None:
    """A message is not acked before its processing ends."""

    async def main() -> None:
        broker.publish(2)
        async with broker.stream() as stream:
            await anext(stream)
            await asyncio.sleep(10 * LEASE)
            assert broker.acked() == []
            assert broker.leased() == [0]

    run(main())


@pytest.mark.parametrize("way", ["break", "raise", "cancel", "return"])
def test_leaving_the_loop_body_never_acks(run: VirtualRun, broker: Broker, way: str) -> None:
    """A break, exception, cancellation or return in the loop body releases the message in hand."""

    async def consume() -> None:
        async with broker.stream() as stream:
            async for message in stream:
                if message["n"] < 2:
                    continue
                if way == "break":
                    break
                if way == "return":
                    return
                if way == "raise":
                    raise ZeroDivisionError
                await asyncio.sleep(3600)

    async def main() -> None:
        broker.publish(5)
        task = asyncio.create_task(consume())
        await asyncio.sleep(1)
        if way == "cancel":
            task.cancel()
        with suppress(ZeroDivisionError, asyncio.CancelledError):
            await task
        assert broker.acked() == [0, 1]
        assert broker.leased() == []
        assert [r.failed for r in broker.records] == [0] * 5

    run(main())


@pytest.mark.parametrize("outcome", ["ack", "nack", "release", "reject"])
def test_an_explicit_settlement_is_not_followed_by_an_ack(
    run: VirtualRun, broker: Broker, outcome: str
) -> None:
    """A message that the caller settled is left alone when the next is asked for."""

    async def main() -> None:
        broker.publish(2)
        async with broker.stream() as stream:
            first = await anext(stream)
            settle = {"nack": lambda: first.nack(60)}.get(outcome, getattr(first, outcome))
            assert await settle()
            assert first.outcome == outcome
            await anext(stream)
            await stream.flush()
            assert broker.records[0].outcomes == [outcome]

    run(main())


def test_the_first_settlement_wins(run: VirtualRun, broker: Broker) -> None:
    """Settling is idempotent; a later, different settlement changes nothing and returns False."""

    async def main() -> None:
        broker.publish(1)
        async with broker.stream() as stream:
            message = await anext(stream)
            assert await message.nack(delay=100)
            assert await message.nack()
            assert not await message.ack()
            assert not await message.release()
            assert not await message.reject("no")
        assert broker.records[0].outcomes == ["nack"]
        assert broker.records[0].due == now() + 100
        assert not await message.ack()

    run(main())


def test_ack_then_break_keeps_the_message(run: VirtualRun, broker: Broker) -> None:
    """``await message.ack(); break`` is how a loop keeps its last message."""

    async def main() -> None:
        broker.publish(2)
        async with broker.stream() as stream:
            async for message in stream:
                await message.ack()
                break

    run(main())
    assert broker.acked() == [0]
    assert broker.unsettled() == [1]


def test_what_the_backend_cannot_do_is_refused_and_settles_nothing(
    run: VirtualRun, tools: type[Toolbox]
) -> None:
    """An unsupported settlement raises, and the message can still be settled otherwise."""
    broker = tools.broker(release=False, reject=False, redelivery="none", nack_delay=0.0)

    async def main() -> None:
        broker.publish(1)
        async with broker.stream() as stream:
            message = await anext(stream)
            for refused in (message.release(), message.reject(), message.nack()):
                with pytest.raises(UnsupportedError):
                    await refused
            assert await message.ack()

    run(main())
    assert broker.acked() == [0]


@pytest.mark.parametrize(("delay", "error"), [(61, UnsupportedError), (-1, ConfigurationError)])
def test_a_nack_delay_out_of_range_is_refused(
    run: VirtualRun, tools: type[Toolbox], delay: float, error: type[AbeError]
) -> None:
    """A delay that the broker cannot keep is refused before anything is sent."""
    broker = tools.broker(nack_delay=60.0)

    async def main() -> None:
        broker.publish(1)
        async with broker.stream() as stream:
            message = await anext(stream)
            with pytest.raises(error):
                await message.nack(delay)
            assert message.outcome is None

    run(main())


# -- rule 1: unread ----------------------------------------------------------------------------


def test_an_unread_message_comes_again_first_and_is_not_acked(
    run: VirtualRun, broker: Broker
) -> None:
    """``unread`` puts the last message back at the front, as if it had not been handed over."""

    async def main() -> None:
        broker.publish(3)
        async with broker.stream() as stream:
            await anext(stream)
            message = await anext(stream)
            assert stream.unread(message)
            assert message.outcome is None
            again = await anext(stream)
            assert again is message
            await stream.flush()
            assert broker.acked() == [0]
            assert await anext(stream) == {"n": 2}
            await stream.flush()
            assert broker.acked() == [0, 1]

    run(main())


def test_unread_refuses_what_is_not_in_hand(run: VirtualRun, broker: Broker) -> None:
    """Settled messages, earlier ones, others' and those of a closing stream cannot be unread."""

    async def main() -> None:
        broker.publish(4)
        async with broker.stream() as stream:
            first = await anext(stream)
            second = await anext(stream)
            assert not stream.unread(first)
            await second.ack()
            assert not stream.unread(second)
            assert not stream.unread(Message({}))
            third = await anext(stream)
            async with broker.stream() as other:
                assert not stream.unread(await anext(other))
            closing = asyncio.create_task(stream.aclose())
            await asyncio.sleep(0)
            assert not stream.unread(third)
            await closing

    run(main())


def test_an_unread_detached_message_belongs_to_the_stream_again(
    run: VirtualRun, broker: Broker
) -> None:
    """A message detached in vain is released with the others."""

    async def main() -> None:
        broker.publish(1)
        async with broker.stream() as stream:
            message = await anext(stream)
            message.detach()
            assert stream.unread(message)
        assert broker.records[0].outcomes == ["release"]

    run(main())


def test_results_of_tasks_that_nobody_picks_up_are_not_lost(
    run: VirtualRun, broker: Broker
) -> None:
    """Who runs ``__anext__`` in a task and unreads what it does not pick up loses nothing."""
    handled: list[int] = []

    async def main() -> None:
        async with broker.stream() as stream:
            for turn in range(400):
                broker.publish(1)
                task = asyncio.create_task(anext(stream))
                for _ in range(turn % 9):
                    await asyncio.sleep(0)
                if task.done() and turn % 2:
                    handled.append(task.result()["n"])
                    continue
                task.cancel()
                with suppress(asyncio.CancelledError):
                    assert stream.unread(await task)
            while messages := await stream.take(50, 1):
                handled.extend(message["n"] for message in messages)

    run(main())
    assert handled == list(range(400))
    assert broker.acked() == handled


# -- rule 1: take ------------------------------------------------------------------------------


def test_take_is_acked_by_the_next_take(run: VirtualRun, broker: Broker) -> None:
    """``take`` hands over messages in order, and acks them when called again."""

    async def main() -> None:
        broker.publish(6)
        async with broker.stream() as stream:
            assert [m["n"] for m in await stream.take(3)] == [0, 1, 2]
            await stream.flush()
            assert broker.acked() == []
            assert [m["n"] for m in await stream.take(3)] == [3, 4, 5]
            await stream.flush()
            assert broker.acked() == [0, 1, 2]

    run(main())


def test_take_is_acked_by_a_clean_exit(run: VirtualRun, broker: Broker) -> None:
    """Leaving ``async with`` without an exception acks what ``take`` returned last."""

    async def main() -> None:
        broker.publish(3)
        async with broker.stream() as stream:
            await stream.take(2)

    run(main())
    assert broker.acked() == [0, 1]


def test_take_is_released_by_an_exception(run: VirtualRun, broker: Broker) -> None:
    """Leaving ``async with`` with an exception releases what ``take`` returned last."""

    async def main() -> None:
        broker.publish(3)
        with suppress(ZeroDivisionError):
            async with broker.stream() as stream:
                await stream.take(2)
                raise ZeroDivisionError

    run(main())
    assert broker.acked() == []
    assert [r.outcomes for r in broker.records[:2]] == [["release"]] * 2


def test_a_message_iterated_after_a_take_is_not_acked_by_a_clean_exit(
    run: VirtualRun, broker: Broker
) -> None:
    """Only ``take`` acks on a clean exit: a loop may have been left by ``break``."""

    async def main() -> None:
        broker.publish(3)
        async with broker.stream() as stream:
            await stream.take(2)
            async for _ in stream:
                break

    run(main())
    assert broker.acked() == [0, 1]
    assert broker.unsettled() == [2]


def test_take_returns_what_has_arrived_by_its_timeout(run: VirtualRun, broker: Broker) -> None:
    """The timeout of ``take`` is a total, and what has arrived by then is returned."""

    async def main() -> None:
        broker.publish(2)
        async with broker.stream() as stream:
            started = now()
            assert len(await stream.take(5, timeout=3.0)) == 2
            assert now() == pytest.approx(started + 3)
            assert await stream.take(5, timeout=3.0) == []
            assert now() == pytest.approx(started + 6)

    run(main())
    assert broker.acked() == [0, 1]


def test_polling_with_a_timeout_of_zero_finds_messages(
    run: VirtualRun, tools: type[Toolbox]
) -> None:
    """``take(timeout=0)`` asks the broker too, so a polling caller is not left empty for ever."""
    broker = tools.broker()
    broker.latency = 0.01

    async def main() -> None:
        async with broker.stream() as stream:
            assert await stream.take(3, timeout=0) == []
            broker.publish(3)
            taken = []
            for _ in range(10):
                taken += await stream.take(3, timeout=0)
                await asyncio.sleep(0.05)
            assert [m["n"] for m in taken] == [0, 1, 2]

    run(main())
    broker.check()


def test_a_cancelled_take_puts_everything_back_in_order(run: VirtualRun, broker: Broker) -> None:
    """A cancelled ``take`` neither acks nor reorders what it had collected."""

    async def main() -> None:
        broker.publish(3)
        async with broker.stream() as stream:
            task = asyncio.create_task(stream.take(5))
            await asyncio.sleep(1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await stream.flush()
            assert broker.acked() == []
            broker.publish(1)
            assert [m["n"] for m in await stream.take(4, 1)] == [0, 1, 2, 3]

    run(main())


def test_suspects_put_back_by_take_are_still_handed_out_singly(
    run: VirtualRun, broker: Broker
) -> None:
    """A cancelled ``take`` does not forget that a message may be what kills the process."""

    async def main() -> None:
        for record in broker.publish(3):
            record.failed = 2
        async with broker.stream() as stream:
            task = asyncio.create_task(stream.take(5))
            await asyncio.sleep(1)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            assert (await anext(stream)).attempt == 3
            await breathe()
            assert broker.leased() == [0]

    run(main())


def test_take_ends_early_when_it_has_become_quiet(run: VirtualRun, broker: Broker) -> None:
    """With ``quiet``, no further message for so long ends ``take``, but only after a first one."""

    async def main() -> None:
        async with broker.stream() as stream:
            task = asyncio.create_task(stream.take(10, timeout=100.0, quiet=2.0))
            for pause in (10.0, 1.5, 1.5, 5.0):
                await asyncio.sleep(pause)
                broker.publish(1)
            assert [message["n"] for message in await task] == [0, 1, 2]
            started = now()
            assert len(await stream.take(10, timeout=1.0, quiet=2.0)) == 1
            assert now() - started == pytest.approx(1.0)

    run(main())


def test_take_of_nothing_returns_nothing(run: VirtualRun, broker: Broker) -> None:
    """``take(0)`` acks what was handed over and waits for nothing."""

    async def main() -> None:
        broker.publish(1)
        async with broker.stream() as stream:
            await anext(stream)
            assert await stream.take(0) == []
            await stream.flush()
            assert broker.acked() == [0]

    run(main())


# -- rule 2: timeouts, closing while waiting, two waiters ----------------------------------------


def ask_with_timeout(stream: MessageStream, seconds: float) -> Coroutine[Any, Any, Message]:
    async def ask() -> Message:
        async with asyncio.timeout(seconds):
            return await anext(stream)

    return ask()


def ask_with_wait_for(stream: MessageStream, seconds: float) -> Coroutine[Any, Any, Message]:
    return asyncio.wait_for(anext(stream), seconds)


@pytest.mark.parametrize("ask", [ask_with_timeout, ask_with_wait_for])
def test_a_timeout_leaves_the_stream_usable_and_loses_nothing(
    run: VirtualRun,
    broker: Broker,
    ask: Callable[[MessageStream, float], Coroutine[Any, Any, Message]],
) -> None:
    """Timeouts around ``__anext__``, many of them at the very moment of arrival, lose nothing."""
    broker.latency = 0.01
    received: list[int] = []

    async def publish() -> None:
        for _ in range(200):
            broker.publish(1)
            await asyncio.sleep(0.0125)

    async def main() -> None:
        publisher = asyncio.create_task(publish())
        async with broker.stream() as stream:
            tries = timeouts = 0
            while len(received) < 200:
                tries += 1
                try:
                    received.append((await ask(stream, 0.001 * (tries % 25)))["n"])
                except TimeoutError:
                    timeouts += 1
            assert timeouts > 50
            await stream.take(1, 0.1)
        await publisher

    run(main())
    assert received == list(range(200))
    assert broker.acked() == received


def test_a_timed_out_wait_keeps_the_message_that_was_arriving(
    run: VirtualRun, broker: Broker
) -> None:
    """The read that a timeout interrupts is not cancelled; its message is handed over next."""
    broker.fault("receive", answer=5.0)

    async def main() -> None:
        broker.publish(1)
        async with broker.stream() as stream:
            with pytest.raises(TimeoutError):
                await ask_with_timeout(stream, 1.0)
            assert await anext(stream) == {"n": 0}
            assert len(broker.called("receive")) == 1

    run(main())


@pytest.mark.parametrize("published", [0, 3])
def test_closing_ends_a_waiting_iteration(run: VirtualRun, broker: Broker, published: int) -> None:
    """``aclose()`` while another task waits in ``__anext__``: the waiter sees the end."""
    received: list[int] = []

    async def consume(stream: MessageStream) -> None:
        received.extend([message["n"] async for message in stream])

    async def main() -> None:
        broker.publish(published)
        stream = broker.stream()
        task = asyncio.create_task(consume(stream))
        await asyncio.sleep(1)
        assert not task.done()
        started = now()
        await stream.aclose()
        assert now() == started
        await task
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        assert stream.closed

    run(main())
    assert received == broker.acked() == list(range(published))


def test_closing_ends_a_waiting_take(run: VirtualRun, broker: Broker) -> None:
    """``aclose()`` while another task waits in ``take``: it returns, and nothing is acked."""

    async def main() -> None:
        broker.publish(2)
        stream = broker.stream()
        task = asyncio.create_task(stream.take(5))
        await asyncio.sleep(1)
        await stream.aclose()
        assert await task == []

    run(main())
    assert [r.outcomes for r in broker.records] == [["release"]] * 2


@pytest.mark.parametrize("second", ["anext", "take"])
def test_two_tasks_cannot_wait_on_one_stream(run: VirtualRun, broker: Broker, second: str) -> None:
    """The second task is told so at once; the first is not disturbed."""

    async def main() -> None:
        async with broker.stream() as stream:
            task = asyncio.create_task(anext(stream))
            await asyncio.sleep(1)
            with pytest.raises(RuntimeError, match="another task is waiting on this stream"):
                await (anext(stream) if second == "anext" else stream.take(1))
            broker.publish(1)
            assert await task == {"n": 0}

    run(main())


# -- rule 3: prefetch --------------------------------------------------------------------------


def test_the_first_read_asks_for_one_message(run: VirtualRun, broker: Broker) -> None:
    """Nothing is received ahead before the caller has shown its speed."""

    async def main() -> None:
        broker.publish(100)
        async with broker.stream() as stream:
            await anext(stream)
            await asyncio.sleep(1)
            assert [call.detail[0] for call in broker.called("receive")] == [1]
            assert broker.leased() == [0]

    run(main())


def test_prefetch_grows_while_the_caller_is_fast(run: VirtualRun, broker: Broker) -> None:
    """Thousands of fast messages need few reads, none of them too large."""

    async def main() -> None:
        broker.publish(5000)
        async with broker.stream() as stream:
            for _ in range(5000):
                await anext(stream)
                await asyncio.sleep(0.0001)

    run(main(), debug=False)
    asked = [call.detail[0] for call in broker.called("receive")]
    assert asked[0] == 1
    assert 256 <= max(asked) <= 512
    assert len(asked) < 60


def test_never_more_than_a_quarter_lease_of_work_is_held(run: VirtualRun, broker: Broker) -> None:
    """However many messages wait, a caller of one per second holds a quarter lease of them."""
    held: list[int] = []

    async def main() -> None:
        broker.publish(100)
        async with broker.stream() as stream:
            for _ in range(100):
                await anext(stream)
                held.append(len(broker.leased()))
                await asyncio.sleep(1)

    run(main())
    assert max(held) <= QUARTER + 2
    assert max(held) >= QUARTER - 2
    assert len(broker.called("receive")) < 60


def test_a_quick_caller_holds_a_quarter_lease_of_work_too(run: VirtualRun, broker: Broker) -> None:
    """Also messages that are handed over without further ado count for its speed."""
    held: list[int] = []

    async def main() -> None:
        broker.publish(2000)
        async with broker.stream() as stream:
            for _ in range(2000):
                await anext(stream)
                held.append(len(stream._engine.buffer))
                await asyncio.sleep(0.02)

    run(main())
    assert QUARTER / 0.02 * 0.9 < max(held) <= QUARTER / 0.02


def test_a_caller_that_slows_down_gives_back_what_it_cannot_do(
    run: VirtualRun, broker: Broker
) -> None:
    """A large buffer shrinks within about a quarter lease of the caller's slowing down."""
    held: list[int] = []

    async def main() -> None:
        broker.publish(3000)
        async with broker.stream() as stream:
            for _ in range(1000):
                await anext(stream)
            assert len(broker.leased()) > 200
            for _ in range(30):
                await anext(stream)
                await asyncio.sleep(1)
                held.append(len(broker.leased()))

    run(main(), debug=False)
    assert max(held[10:]) <= QUARTER + 2
    assert {r.failed for r in broker.records} == {0}


def test_what_a_cancelled_take_put_back_is_shed_like_other_buffered_messages(
    run: VirtualRun, broker: Broker
) -> None:
    """A put-back batch does not escape the limit of a quarter lease."""

    async def main() -> None:
        broker.publish(200)
        async with broker.stream() as stream:
            task = asyncio.create_task(stream.take(201))
            await asyncio.sleep(1)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            for _ in range(12):
                await anext(stream)
                await asyncio.sleep(1.5)
            assert len(broker.leased()) <= QUARTER + 2

    run(main())


def test_buffered_messages_not_asked_for_are_released_after_a_quarter_lease(
    run: VirtualRun, broker: Broker
) -> None:
    """A caller that stops asking keeps only the message in hand; the rest goes to others."""

    async def main() -> None:
        broker.publish(50)
        async with broker.stream() as stream:
            for _ in range(20):
                await anext(stream)
            await breathe()
            assert len(broker.leased()) > 5
            await asyncio.sleep(QUARTER + LEASE / 16)
            assert broker.leased() == [19]
            await asyncio.sleep(10 * LEASE)
            assert broker.leased() == [19]
            assert [(await anext(stream))["n"] for _ in range(20)] == list(range(20, 40))
            assert {r.failed for r in broker.records} == {0}

    run(main())


def test_a_read_in_progress_does_not_take_released_messages_back(
    run: VirtualRun, broker: Broker
) -> None:
    """What is released for others is not taken again by the same stream's waiting read."""

    async def main() -> None:
        broker.publish(24)
        async with broker.stream() as stream:
            await several(stream, 20)
            await stream.flush()
            assert broker.leased() == [19, 20, 21, 22, 23]
            await asyncio.sleep(LEASE)
            assert broker.leased() == [19]
            assert {r.deliveries for r in broker.records} == {1}

    run(main())


def test_a_message_arriving_after_a_timed_out_wait_is_released_if_not_asked_for(
    run: VirtualRun, broker: Broker
) -> None:
    """The read that outlived its caller does not keep a message for ever."""

    async def main() -> None:
        async with broker.stream() as stream:
            with pytest.raises(TimeoutError):
                await ask_with_timeout(stream, 1.0)
            broker.publish(1)
            await breathe()
            assert broker.leased() == [0]
            await asyncio.sleep(QUARTER + LEASE / 16)
            assert broker.leased() == []
            assert await anext(stream) == {"n": 0}
            assert broker.records[0].outcomes == ["release"]

    run(main())


def test_prefetch_of_one_takes_nothing_beside_the_message_in_hand(
    run: VirtualRun, broker: Broker
) -> None:
    """With ``prefetch=1`` the next message is received when the caller asks for it."""

    async def main() -> None:
        broker.publish(50)
        async with broker.stream(prefetch=1) as stream:
            for n in range(40):
                await anext(stream)
                await breathe()
                await stream.flush()
                assert broker.leased() == [n]
            assert {call.detail[0] for call in broker.called("receive")} == {1}

    run(main())


def test_prefetch_bounds_the_buffer(run: VirtualRun, broker: Broker) -> None:
    """An explicit ``prefetch`` is the most that is received ahead."""
    held: list[int] = []

    async def main() -> None:
        broker.publish(300)
        async with broker.stream(prefetch=10) as stream:
            for _ in range(200):
                await anext(stream)
                await stream.flush()
                await breathe()
                held.append(len(broker.leased()))

    run(main(), debug=False)
    assert max(held) == 11


def test_prefetch_is_one_where_releases_count_as_attempts(
    run: VirtualRun, tools: type[Toolbox]
) -> None:
    """A broker whose attempts are an upper bound would count what is released unused."""
    broker = tools.broker(attempts="upper")

    async def main() -> None:
        broker.publish(50)
        async with broker.stream() as stream:
            for _ in range(50):
                assert (await anext(stream)).attempt == 1
        assert {call.detail[0] for call in broker.called("receive")} == {1}

    run(main())
    broker.check()


def test_a_prefetch_below_one_is_refused(broker: Broker) -> None:
    """``prefetch=0`` is a mistake, and the half-made stream makes no noise when it goes."""
    with pytest.raises(ConfigurationError, match="prefetch is 0"):
        broker.stream(prefetch=0)
    gc.collect()


@pytest.mark.parametrize("release", [True, False])
def test_suspects_are_held_alone(run: VirtualRun, tools: type[Toolbox], release: bool) -> None:
    """From attempt 3 on nothing is held beside a message, where the broker can take it back."""
    broker = tools.broker(release=release)
    alone: list[bool] = []

    async def main() -> None:
        broker.publish(100)
        async with broker.stream() as stream:
            for _ in range(20):
                await anext(stream)
            for record in broker.publish(5):
                record.failed = 2
            async for message in stream:
                await stream.flush()
                await breathe()
                if message.attempt == 3:
                    alone.append(broker.leased() == [message["n"]])
                if message["n"] == 104:
                    break

    run(main())
    assert len(alone) == 5
    assert all(alone) or not release
    broker.check()


def test_prefetch_grows_again_after_a_suspect(run: VirtualRun, broker: Broker) -> None:
    """One suspect does not slow the stream down for good."""

    async def main() -> None:
        broker.publish(1)[0].failed = 5
        broker.publish(500)
        async with broker.stream() as stream:
            for _ in range(501):
                await anext(stream)

    run(main(), debug=False)
    assert len(broker.called("receive")) < 30


# -- rule 4: acks ------------------------------------------------------------------------------


def test_acks_wait_at_most_50_ms_for_company(run: VirtualRun, broker: Broker) -> None:
    """An ack is sent within 50 ms, together with those that came meanwhile."""

    async def main() -> None:
        broker.publish(20)
        async with broker.stream() as stream:
            taken = await stream.take(20)
            started = now()
            for message in taken[:10]:
                await message.ack()
                await asyncio.sleep(0.004)
            await asyncio.sleep(0.02)
            (call,) = broker.called("settle")
            assert call.time == pytest.approx(started + 0.05)
            assert len(call.detail) == 10

    run(main())


def test_acks_are_sent_at_once_when_there_are_many(run: VirtualRun, broker: Broker) -> None:
    """A full batch does not wait, and no batch is larger than 512."""

    async def main() -> None:
        broker.publish(1200)
        async with broker.stream() as stream:
            taken = await stream.take(1200)
            for message in taken:
                message.detach()
            started = now()
            for message in taken:
                await message.ack()
            await breathe()
            assert now() == started
            assert [len(call.detail) for call in broker.called("settle")][:2] == [512, 512]
            await asyncio.sleep(0.05)
            assert broker.acked() == list(range(1200))

    run(main(), debug=False)
    assert [len(call.detail) for call in broker.called("settle")][:2] == [512, 512]


def test_acks_are_flushed_before_the_stream_waits(run: VirtualRun, broker: Broker) -> None:
    """While the caller waits for a message, no ack waits for company."""

    async def main() -> None:
        broker.publish(1)
        async with broker.stream() as stream:
            await anext(stream)
            task = asyncio.create_task(anext(stream))
            started = now()
            await breathe()
            assert now() == started
            assert broker.acked() == [0]
            task.cancel()

    run(main())


def test_acks_are_flushed_when_the_stream_closes(run: VirtualRun, broker: Broker) -> None:
    """``aclose`` returns after the broker has accepted every settlement."""
    broker.latency = 1.0

    async def main() -> None:
        broker.publish(3)
        async with broker.stream() as stream:
            for message in await stream.take(3):
                await message.ack()
        assert broker.acked() == [0, 1, 2]

    run(main())


def test_other_settlements_do_not_wait_and_keep_their_order(
    run: VirtualRun, broker: Broker
) -> None:
    """A nack goes out at once, after the acks recorded before it."""

    async def main() -> None:
        broker.publish(3)
        async with broker.stream() as stream:
            first, second, third = await stream.take(3)
            await first.ack()
            await second.nack(60)
            await third.reject("broken")
            started = now()
            await breathe()
            assert now() == started
            settled = [item for call in broker.called("settle") for item in call.detail]
            assert settled == [(0, "ack"), (1, "nack"), (2, "reject")]

    run(main())


def test_flush_returns_when_the_broker_has_accepted(run: VirtualRun, broker: Broker) -> None:
    """``flush`` waits for settlements on their way, and for those recorded before it."""
    broker.latency = 1.0

    async def main() -> None:
        broker.publish(2)
        async with broker.stream() as stream:
            first, second = await stream.take(2)
            await first.ack()
            await asyncio.sleep(0.1)
            await second.ack()
            await stream.flush()
            assert broker.acked() == [0, 1]
            assert [r.lease for r in broker.records] == [None, None]

    run(main())


def test_flush_returns_under_steady_traffic(run: VirtualRun, broker: Broker) -> None:
    """What is recorded while ``flush`` waits does not keep it waiting."""
    broker.latency = 1.0

    async def ack_on_and_on(messages: list[Message]) -> None:
        for message in messages:
            await message.ack()
            await asyncio.sleep(0.1)

    async def main() -> None:
        broker.publish(301)
        async with broker.stream() as stream:
            first, *others = await stream.take(301)
            task = asyncio.create_task(ack_on_and_on(others))
            await asyncio.sleep(5)
            await first.ack()
            started = now()
            await stream.flush()
            assert now() - started < 3
            assert broker.records[0].outcome == "ack"
            await task

    run(main())
    assert len(broker.acked()) == 301


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("error", [RESET, TimeoutError("no answer")])
def test_a_failed_settle_is_retried(
    run: VirtualRun, broker: Broker, error: Exception, late: bool
) -> None:
    """A settle that fails, before or after the broker did it, is repeated until it is answered."""
    broker.fault("settle", times=3, error=error, late=late)

    async def main() -> None:
        broker.publish(2)
        async with broker.stream() as stream:
            for message in await stream.take(2):
                await message.ack()
            await stream.flush()
            assert broker.acked() == [0, 1]
            assert len(broker.called("settle")) == 4

    run(main())


def test_only_the_failed_part_of_a_settle_is_retried(run: VirtualRun, broker: Broker) -> None:
    """Settlements that the broker accepted are not sent again."""
    refusals = iter([TimeoutError(), TimeoutError(), None])
    broker.refuse = lambda s: next(refusals) if s.delivery.message["n"] == 1 else None

    async def main() -> None:
        broker.publish(3)
        async with broker.stream() as stream:
            for message in await stream.take(3):
                await message.ack()
            await stream.flush()

    run(main())
    assert broker.settled("ack") == [0, 1, 2, 1, 1]
    assert broker.acked() == [0, 1, 2]


def test_acks_recorded_during_a_retry_are_sent_too(run: VirtualRun, broker: Broker) -> None:
    """What is recorded while the broker is unreachable goes out when it returns, in order."""

    async def main() -> None:
        broker.publish(3)
        async with broker.stream() as stream:
            first, second, third = await stream.take(3)
            broker.cut(down=ConnectionError("down"))
            await first.ack()
            await asyncio.sleep(1)
            await second.ack()
            await asyncio.sleep(1)
            broker.down = None
            await third.ack()
            await stream.flush()
            assert broker.acked() == [0, 1, 2]

    run(main())


def test_an_ack_on_a_lost_lease_warns(
    run: VirtualRun, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """Acking what somebody else has by now changes nothing and is a warning, not an error."""

    async def main() -> None:
        broker.publish(2, key="orders.eu")
        async with broker.stream() as stream:
            message = await anext(stream)
            broker.expire(broker.records[0])
            await anext(stream)
            await stream.flush()
            assert message.outcome is Outcome.LOST
            assert not await message.ack()

    run(main())
    (record,) = warned(caplog, "lease lost")
    assert "orders.eu" in record.getMessage()
    assert record.__dict__["id"] == "id-0"


def test_a_release_of_a_lost_lease_is_silent(
    run: VirtualRun, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """Giving back what is gone already is what was wanted."""

    async def main() -> None:
        broker.publish(1)
        async with broker.stream() as stream:
            await anext(stream)
            broker.expire(broker.records[0])

    run(main())
    assert not warned(caplog, "lost")


def call(stream: MessageStream, method: str) -> Awaitable[object]:
    methods: dict[str, Callable[[], Awaitable[object]]] = {
        "anext": lambda: anext(stream),
        "take": lambda: stream.take(1),
        "enter": stream.__aenter__,
        "exit": lambda: stream.__aexit__(None, None, None),
    }
    return methods.get(method, getattr(stream, method, None) or stream.flush)()


@pytest.mark.parametrize("where", ["anext", "take", "flush", "aclose", "enter", "exit"])
def test_a_refused_settlement_surfaces(run: VirtualRun, broker: Broker, where: str) -> None:
    """What the broker refuses for good is raised by the next call that can raise."""
    broker.refuse = lambda settlement: (
        PermissionError("read only") if settlement.outcome == "ack" else None
    )

    async def main() -> None:
        broker.publish(2)
        stream = broker.stream()
        message = await anext(stream)
        await message.ack()
        if where in ("anext", "take", "enter"):
            await asyncio.sleep(1)
        with pytest.raises(PermissionError, match="read only"):
            await call(stream, where)
        await stream.aclose()

    run(main())


def test_a_settle_that_raises_for_good_surfaces_and_ends_the_stream(
    run: VirtualRun, broker: Broker
) -> None:
    """An error of ``settle`` that no new connection cures ends the stream."""
    broker.fault("settle", error=ValueError("no such group"))

    async def main() -> None:
        broker.publish(3)
        stream = broker.stream()
        with pytest.raises(ValueError, match="no such group"):
            await several(stream, 4)
        await stream.aclose()

    run(main())
    assert broker.acked() == []


@pytest.mark.parametrize("method", ["settle", "extend"])
def test_a_receiver_that_does_not_say_what_failed_is_a_permanent_failure(
    run: VirtualRun, broker: Broker, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """A provider that forgets to return the failures gets an error, not an endless loop."""

    async def forgetful(receiver: object, *what: object) -> None:
        return None

    async def main() -> None:
        broker.publish(1)
        stream = broker.stream()
        await anext(stream)
        monkeypatch.setattr(type(broker.receivers[0]), method, forgetful)
        await asyncio.sleep(LEASE)
        with pytest.raises(TypeError) as caught:
            await anext(stream)
        assert str(caught.value) == (
            f"ScriptedReceiver.{method}() returned None; it must return a list of what failed,"
            " empty if nothing did"
        )
        await stream.aclose()

    run(main())


# -- rule 5: leases ----------------------------------------------------------------------------


def test_the_lease_of_a_message_being_processed_is_extended(
    run: VirtualRun, broker: Broker
) -> None:
    """A message may take far longer than its lease; nobody else gets it meanwhile."""

    async def main() -> None:
        broker.publish(1)
        async with broker.stream() as stream, broker.stream() as other:
            message = await anext(stream)
            with pytest.raises(TimeoutError):
                await ask_with_timeout(other, 20 * LEASE)
            assert await message.ack()
        assert broker.records[0].outcomes == ["ack"]

    run(main())
    assert 20 <= len(broker.called("extend")) <= 60


def test_leases_of_buffered_messages_are_extended_where_they_cannot_be_released(
    run: VirtualRun, tools: type[Toolbox]
) -> None:
    """Without release, what is buffered is kept until it is asked for."""
    broker = tools.broker(release=False)

    async def main() -> None:
        broker.publish(40)
        async with broker.stream() as stream:
            for _ in range(20):
                await anext(stream)
            await stream.flush()
            held = broker.leased()
            assert len(held) > 5
            await asyncio.sleep(5 * LEASE)
            assert broker.leased() == held
            for _ in range(20):
                assert (await anext(stream)).attempt == 1

    run(main())


def test_a_lease_is_extended_up_to_max_hold_and_not_beyond(
    run: VirtualRun, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """A handler that hangs loses its message after ``max_hold``, with one warning."""

    async def main() -> None:
        broker.publish(1)
        async with broker.stream(max_hold=100.0) as stream:
            message = await anext(stream)
            await asyncio.sleep(100)
            assert broker.leased() == [0]
            await asyncio.sleep(LEASE + 1)
            assert broker.leased() == []
            await asyncio.sleep(10 * LEASE)
            await message.ack()
            await stream.flush()

    run(main())
    assert len(warned(caplog, "held for 100 s")) == 1
    assert len(warned(caplog, "lease lost")) == 1
    assert max(call.time for call in broker.called("extend")) <= 1000 + 101


def test_a_lease_lost_while_processing_warns_at_once(
    run: VirtualRun, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """A lost lease is noticed by the next extension; acking the message returns False."""

    async def main() -> None:
        broker.publish(1)
        async with broker.stream() as stream:
            message = await anext(stream)
            broker.expire(broker.records[0])
            await asyncio.sleep(LEASE)
            assert message.outcome is Outcome.LOST
            assert not await message.ack()
        assert broker.records[0].outcomes == ["lapsed"]

    run(main())
    assert len(warned(caplog, "lease lost")) == 1


def test_a_lease_lost_while_buffered_is_not_handed_over(
    run: VirtualRun, tools: type[Toolbox]
) -> None:
    """A message that belongs to somebody else by now is not yielded from the buffer."""
    broker = tools.broker(release=False)

    async def main() -> None:
        broker.publish(3)
        async with broker.stream() as stream:
            first = await stream.take(3)
            stream.unread(first[2])
            broker.expire(broker.records[2])
            await asyncio.sleep(LEASE)
            assert first[2].outcome is Outcome.LOST
            assert (await anext(stream)).attempt == 2

    run(main())


def test_the_lease_of_a_finished_message_is_not_extended(run: VirtualRun, broker: Broker) -> None:
    """What the caller asked beyond is forgotten, and not only because the broker says so."""

    async def main() -> None:
        broker.publish(3)
        async with broker.stream() as stream:
            await several(stream, 3)
            await asyncio.sleep(LEASE)
            assert broker.extended() == [2]
            assert len(stream._engine._held) == 1

    run(main())


def test_watching_over_leases_does_not_disturb_a_read(run: VirtualRun, broker: Broker) -> None:
    """A read waits as long as it may while an earlier message is held, instead of polling."""

    async def main() -> None:
        broker.publish(1)
        async with broker.stream() as stream:
            message = await anext(stream)
            message.detach()
            asked = len(broker.called("receive"))
            assert await stream.take(1, timeout=LEASE / 2) == []
            assert len(broker.called("receive")) == asked + 1
            await message.ack()

    run(main())


def test_extension_stops_once_everything_is_settled(run: VirtualRun, broker: Broker) -> None:
    """An idle stream sends nothing and leaves no timer but that of its read."""

    async def main() -> None:
        broker.publish(1)
        async with broker.stream() as stream:
            message = await anext(stream)
            await message.ack()
            await asyncio.sleep(LEASE)
            calls = len(broker.calls)
            await asyncio.sleep(10 * LEASE)
            assert len(broker.calls) == calls
            broker.publish(1)
            await anext(stream)
            await asyncio.sleep(5 * LEASE)
            assert broker.leased() == [1]

    run(main())


def test_a_failing_extension_reconnects_and_goes_on(run: VirtualRun, broker: Broker) -> None:
    """Connection errors while extending cost a reconnection, not the message."""

    async def main() -> None:
        broker.publish(1)
        broker.fault("extend", times=2, error=RESET)
        async with broker.stream() as stream:
            message = await anext(stream)
            await asyncio.sleep(5 * LEASE)
            assert broker.leased() == [0]
            assert await message.ack()

    run(main())
    assert broker.acked() == [0]
    assert len(broker.receivers) == 3


def test_an_extension_that_fails_for_good_surfaces(run: VirtualRun, broker: Broker) -> None:
    """An error of ``extend`` that no new connection cures ends the stream."""
    broker.fault("extend", error=ValueError("no such group"))

    async def main() -> None:
        broker.publish(2)
        stream = broker.stream()
        await anext(stream)
        await asyncio.sleep(LEASE)
        with pytest.raises(ValueError, match="no such group"):
            await anext(stream)
        await stream.aclose()

    run(main())


def test_buffered_messages_are_released_on_close(run: VirtualRun, broker: Broker) -> None:
    """Closing gives back what is buffered and in hand, uncounted and in order."""

    async def main() -> None:
        broker.publish(60)
        async with broker.stream() as stream:
            for _ in range(30):
                await anext(stream)
            await stream.flush()
            held = broker.leased()
            assert len(held) > 5
        assert broker.leased() == []
        assert broker.settled("release") == held
        assert broker.records[29].outcomes == ["release"]
        assert {r.failed for r in broker.records} == {0}

    run(main())


@pytest.mark.parametrize("outcome", ["nack", "release"])
def test_with_key_ordering_successors_are_released_too(
    run: VirtualRun, tools: type[Toolbox], outcome: str
) -> None:
    """After a nack or release, buffered messages of that key are not yielded before it."""
    broker = tools.broker(ordering="key")

    async def main() -> None:
        for n in range(80):
            broker.publish(1, key=f"key.{n % 2}")
        async with broker.stream() as stream:
            for _ in range(30):
                await anext(stream)
            failed = await anext(stream)
            buffered = [r for r in broker.records if r.lease is not None and not r.outcome]
            behind = [r.seq for r in buffered if r.key == failed.key and r.seq > failed["n"]]
            assert len(behind) > 2
            await (failed.nack() if outcome == "nack" else failed.release())
            await stream.flush()
            assert [n for n in broker.settled("release") if n != failed["n"]] == behind
            rest = [(await anext(stream))["n"] for _ in range(40)]
            assert next(n for n in rest if n % 2 == failed["n"] % 2) == failed["n"]
            for parity in (0, 1):
                same_key = [n for n in rest if n % 2 == parity]
                assert same_key == sorted(same_key)

    run(main())
    broker.check()


@pytest.mark.parametrize(("ordering", "outcome"), [("key", "reject"), ("consumer", "nack")])
def test_successors_are_kept_where_nothing_has_to_come_before_them(
    ordering: str, outcome: str, tools: type[Toolbox]
) -> None:
    """After a reject, or without ordering by key, the next message is the next."""
    broker = tools.broker(ordering=ordering)

    async def main() -> None:
        broker.publish(80)
        async with broker.stream() as stream:
            for _ in range(30):
                await anext(stream)
            settled = await anext(stream)
            assert len(broker.leased()) > 2
            await (settled.reject("broken") if outcome == "reject" else settled.nack(60))
            assert (await anext(stream))["n"] == settled["n"] + 1
            await stream.flush()
            assert broker.settled("release") == []

    tools.run(main())
    broker.check()


def test_a_lease_of_none_is_never_extended(run: VirtualRun, tools: type[Toolbox]) -> None:
    """A broker without leases keeps a message as long as the connection lives."""
    broker = tools.broker(lease=None)

    async def main() -> None:
        broker.publish(2)
        async with broker.stream() as stream:
            await anext(stream)
            await asyncio.sleep(3600)
            await anext(stream)
        assert broker.called("extend") == []

    run(main())
    assert broker.acked() == [0]


# -- rule 6: dropped streams -------------------------------------------------------------------


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


def test_a_dropped_stream_is_released_when_warnings_are_errors(
    run: VirtualRun, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``-W error`` does not keep a dropped stream from giving its messages back."""
    unraisable: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: unraisable.append(args.exc_type))

    async def main() -> None:
        broker.publish(1)
        stream = broker.stream()
        await anext(stream)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            del stream
        assert unraisable == [ResourceWarning]
        await asyncio.sleep(1)
        assert broker.leased() == []

    run(main())


def test_tasks_do_not_keep_a_stream_alive(run: VirtualRun, broker: Broker) -> None:
    """A forgotten stream goes at once, whatever runs on its behalf."""

    async def main() -> None:
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

    run(main())


def test_a_message_does_not_keep_its_stream_alive(run: VirtualRun, broker: Broker) -> None:
    """A message kept by the caller refers to its stream weakly, settled or not."""

    async def main() -> None:
        broker.publish(1)
        stream = broker.stream()
        message = await anext(stream)
        gone = weakref.ref(stream)
        with pytest.warns(ResourceWarning):
            del stream
        assert gone() is None
        await asyncio.sleep(1)
        assert not await message.ack()

    run(main())


def test_a_settled_message_leaves_no_cycle(run: VirtualRun, broker: Broker) -> None:
    """Messages go when their last reference goes, without the garbage collector."""

    async def main() -> None:
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

    run(main())


def test_a_dropped_stream_without_a_message_in_hand_is_silent(
    run: VirtualRun, broker: Broker
) -> None:
    """Buffered messages are released without a warning: nobody has begun to process them."""

    async def main() -> None:
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

    run(main())


def test_a_stream_dropped_in_another_thread_is_released(run: VirtualRun, broker: Broker) -> None:
    """The garbage collector may run anywhere."""

    async def main() -> None:
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

    run(main())


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
    run: VirtualRun, tools: type[Toolbox], ticks: int
) -> None:
    """Between ``aclose`` and its end no moment is too early or too late for the loop to end."""
    broker = tools.broker()
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
    broker.check()


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
    assert texts == ["a stream of backend scripted failed, and nobody was left to be told"]


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


def test_take_takes_one_unless_told_otherwise(run: VirtualRun, broker: Broker) -> None:
    async def main() -> None:
        broker.publish(2)
        async with broker.stream() as stream:
            assert await stream.take() == [{"n": 0}]
            assert await stream.take() == [{"n": 1}]

    run(main())


def test_the_group_exists_once_the_stream_is_open(run: VirtualRun, broker: Broker) -> None:
    """``async with`` waits for the connection; the stream then is not closed, though empty."""
    broker.fault("open", delay=5.0)

    async def main() -> None:
        started = now()
        async with broker.stream() as stream:
            assert now() - started == 5.0
            assert broker.receivers[0].opened
            assert not stream.closed
        assert stream.closed

    run(main())


def test_giving_up_while_it_connects_leaves_nothing_open(run: VirtualRun, broker: Broker) -> None:
    """Whoever still refers to the stream need not close it: ``async with`` was not entered."""
    broker.latency = 1.0

    async def main() -> None:
        stream = broker.stream()
        opening = asyncio.create_task(stream.__aenter__())
        await asyncio.sleep(0.5)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        assert stream.closed

    run(main())
    broker.check()


def test_take_asks_for_what_is_still_missing(run: VirtualRun, broker: Broker) -> None:
    async def main() -> None:
        broker.publish(1)
        async with broker.stream() as stream:
            task = asyncio.create_task(stream.take(3))
            for count in (1, 5):
                await asyncio.sleep(1)
                broker.publish(count)
            assert [m["n"] for m in await task] == [0, 1, 2]

    run(main())
    assert [call.detail[0] for call in broker.called("receive")][:3] == [3, 2, 1]


def test_a_stream_may_be_stopped_before_it_began(run: VirtualRun, broker: Broker) -> None:
    """It then connects to nothing."""

    async def main() -> None:
        stream = broker.stream()
        stream.stop()
        assert stream.closed
        assert [message async for message in stream] == []
        async with stream:
            assert await stream.take(1) == []
        await stream.aclose()

    run(main())
    assert broker.calls == []


@pytest.mark.parametrize("closed", [False, True])
def test_a_loop_that_is_closed_with_its_tasks_running_leaves_nothing_behind(
    closed: bool, tools: type[Toolbox], broker: Broker
) -> None:
    """Nothing can be given back any more; at least nobody waits, and no engine is kept."""
    loop = tools.loop()
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
        tools.run(kept[0].aclose())
    with pytest.warns(ResourceWarning, match="was dropped with message id-0"):
        kept.clear()
    assert not [e for e in engine._live if e.loop is loop]
    for pump in pumps:
        pump.get_coro().close()
    broker.receivers.clear()


# -- rule 7: detached messages -----------------------------------------------------------------


def test_a_detached_message_is_settled_by_its_owner_alone(run: VirtualRun, broker: Broker) -> None:
    """Asking for more does not ack a detached message; its lease is extended meanwhile."""

    async def main() -> None:
        broker.publish(3)
        async with broker.stream() as stream:
            first = await anext(stream)
            first.detach()
            await anext(stream)
            await anext(stream)
            await asyncio.sleep(5 * LEASE)
            assert broker.acked() == [1]
            assert broker.leased() == [0, 2]
            assert await first.nack(60)
        assert [r.outcomes for r in broker.records] == [["nack"], ["ack"], ["release"]]

    run(main())


def test_a_detached_message_left_unsettled_is_not_released_on_close(
    run: VirtualRun, broker: Broker
) -> None:
    """Its owner may still be at work: the lease lapses, and a late ack says that it is void."""

    async def main() -> None:
        broker.publish(1)
        async with broker.stream() as stream:
            message = await anext(stream)
            message.detach()
        assert broker.leased() == [0]
        assert not await message.ack()
        assert message.outcome is Outcome.LOST
        await asyncio.sleep(LEASE)
        assert broker.leased() == []

    run(main())


# -- rule 8: reconnection ----------------------------------------------------------------------


def test_a_lost_connection_is_replaced(
    run: VirtualRun, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """A broken read costs a new receiver and two lines in the log; the caller notices nothing."""
    caplog.set_level(logging.INFO)

    async def main() -> None:
        async with broker.stream() as stream:
            task = asyncio.create_task(anext(stream))
            await asyncio.sleep(1)
            broker.cut()
            await asyncio.sleep(1)
            broker.publish(1)
            assert await task == {"n": 0}

    run(main())
    assert len(broker.receivers) == 2
    levels = [r.levelname for r in caplog.records if r.name.startswith("abe")]
    assert levels == ["WARNING", "INFO"]


@pytest.mark.parametrize("failing", ["open", "receive"])
def test_reconnection_backs_off_and_logs_once(
    run: VirtualRun, broker: Broker, caplog: pytest.LogCaptureFixture, failing: str
) -> None:
    """A long outage is tried with growing, jittered pauses, whichever call fails."""
    caplog.set_level(logging.INFO)

    async def main() -> None:
        async with broker.stream() as stream:
            task = asyncio.create_task(anext(stream))
            await asyncio.sleep(1)
            calls = len(broker.called("open"))
            if failing == "open":
                broker.cut(down=ConnectionRefusedError("down"))
            else:
                broker.fault("receive", times=1000, error=RESET)
                broker.cut()
            await asyncio.sleep(600)
            times = [call.time for call in broker.called("open")][calls:]
            broker.down = None
            broker.faults["receive"].clear()
            broker.publish(1)
            assert await task == {"n": 0}
            gaps = [b - a for a, b in itertools.pairwise(times)]
            assert gaps[0] < 0.25
            assert 5.0 <= max(gaps) <= 10.0
            assert 60 <= len(times) <= 140
            assert len(set(gaps)) == len(gaps)

    run(main())
    levels = [r.levelname for r in caplog.records if r.name.startswith("abe")]
    assert levels == ["WARNING", "INFO"]


def test_each_outage_is_logged(
    run: VirtualRun, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """The second outage is as loud as the first, and its first pause as short."""

    async def main() -> None:
        async with broker.stream() as stream:
            for n in range(3):
                task = asyncio.create_task(anext(stream))
                await asyncio.sleep(60)
                broker.cut()
                broker.publish(1)
                started = now()
                assert await task == {"n": n}
                assert now() - started < 0.2

    run(main())
    assert len(warned(caplog, "cannot be reached")) == 3


@pytest.mark.parametrize("method", ["open", "receive", "settle", "extend", "aclose"])
def test_a_call_that_the_driver_cancels_is_a_lost_connection(
    run: VirtualRun, broker: Broker, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    """Drivers cancel what waits on a connection that is gone; the stream must not end of it."""
    broker.cancellable = True

    async def main() -> None:
        broker.fault(method, error=asyncio.CancelledError())
        async with broker.stream() as stream:
            broker.publish(1)
            await asyncio.sleep(1)
            await anext(stream)
            await asyncio.sleep(LEASE)
            if method == "aclose":
                broker.cut()
            broker.publish(1)
            assert await anext(stream) == {"n": 1}
            await stream.flush()
            assert broker.acked() == [0]

    run(main())
    text = "connection reset" if method == "aclose" else "the driver cancelled the call"
    assert len(warned(caplog, text)) == 1
    assert broker.violations == []


@pytest.mark.parametrize("method", ["receive", "settle", "extend"])
def test_an_outage_is_over_once_any_call_has_succeeded(
    run: VirtualRun, broker: Broker, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    """Also while the read of the new connection still waits."""
    caplog.set_level(logging.INFO)

    async def main() -> None:
        async with broker.stream() as stream:
            broker.fault(method, error=RESET)
            waiting = asyncio.create_task(anext(stream))
            await asyncio.sleep(1.0)
            broker.publish(1)
            message = await waiting
            if method == "settle":
                await message.ack()
            if method != "receive":
                await asyncio.sleep(15.0)
            assert [r.getMessage() for r in caplog.records if r.levelno == logging.INFO] == [
                "reconnected to backend scripted"
            ]

    run(main())


def test_a_broker_that_is_down_at_first_is_waited_for(run: VirtualRun, broker: Broker) -> None:
    """An unreachable broker is not an error of ``consume``."""

    async def main() -> None:
        broker.down = ConnectionRefusedError("down")
        stream = broker.stream()
        task = asyncio.create_task(anext(stream))
        await asyncio.sleep(60)
        assert not task.done()
        broker.down = None
        broker.publish(1)
        assert await task == {"n": 0}
        await stream.aclose()

    run(main())


def test_a_factory_that_cannot_connect_is_retried(run: VirtualRun, broker: Broker) -> None:
    """A receiver that connects when it is made fails like one that connects when opened."""
    failures = iter([ConnectionRefusedError("down"), ConnectionRefusedError("down"), None])

    def factory() -> Any:
        if (error := next(failures)) is not None:
            raise error
        return broker.receiver()

    async def main() -> None:
        broker.publish(1)
        stream = MessageStream(factory, capabilities=broker.capabilities, backend="scripted")
        async with stream:
            assert await anext(stream) == {"n": 0}

    run(main())


@pytest.mark.parametrize("bound", [False, True])
def test_the_buffer_is_dropped_with_the_connection(
    run: VirtualRun, tools: type[Toolbox], bound: bool
) -> None:
    """What was buffered on a lost connection comes again, once, to whoever asks."""
    broker = tools.broker(bound=bound)

    async def main() -> None:
        broker.publish(60)
        async with broker.stream() as stream:
            received = [(await anext(stream))["n"] for _ in range(30)]
            await stream.flush()
            held = len(broker.leased())
            assert held > 5
            broker.cut()
            await asyncio.sleep(1)
            with suppress(TimeoutError):
                while True:
                    received.append((await ask_with_timeout(stream, 3 * LEASE))["n"])
            assert sorted(set(received)) == list(range(60))
            assert len(received) <= 60 + (held if bound else 0)

    run(main())
    assert broker.acked() == list(range(60))
    broker.check()


def test_a_message_in_hand_is_lost_with_a_connection_that_owned_it(
    run: VirtualRun, tools: type[Toolbox], caplog: pytest.LogCaptureFixture
) -> None:
    """Acking it warns; the message is delivered again and counts."""
    broker = tools.broker(bound=True)

    async def main() -> None:
        broker.publish(1)
        async with broker.stream() as stream:
            first = await anext(stream)
            broker.cut()
            again = await anext(stream)
            assert again == first
            assert again.attempt == 2
            await stream.flush()
            assert first.outcome is Outcome.LOST
            await again.ack()

    run(main())
    assert broker.acked() == [0]
    assert len(warned(caplog, "lease lost")) == 1
    broker.check()


def test_an_outage_noticed_by_settle_ends_the_read_of_the_old_connection(
    run: VirtualRun, broker: Broker
) -> None:
    """A read that waits on a replaced connection is ended, and the next is on the new one."""

    async def main() -> None:
        broker.publish(1)
        async with broker.stream() as stream:
            message = await anext(stream)
            task = asyncio.create_task(anext(stream))
            await asyncio.sleep(1)
            broker.publish(1)
            second = await task
            broker.fault("settle", error=RESET)
            task = asyncio.create_task(anext(stream))
            await asyncio.sleep(1)
            assert len(broker.receivers) == 2
            broker.publish(1)
            assert await task == {"n": 2}
            assert message.outcome is second.outcome is Outcome.ACK

    run(main())


@pytest.mark.parametrize("bound", [False, True])
def test_messages_read_on_a_replaced_connection_are_given_back(
    run: VirtualRun, tools: type[Toolbox], bound: bool
) -> None:
    """A read that ends after its connection was replaced strands and yields nothing stale."""
    broker = tools.broker(bound=bound)

    async def main() -> None:
        broker.publish(2)
        async with broker.stream(prefetch=1) as stream:
            await anext(stream)
            broker.fault("receive", answer=3.0)
            broker.fault("settle", error=RESET)
            started = now()
            message = await anext(stream)
            assert now() - started < LEASE / 2
            assert len(broker.receivers) == 2
            lease = broker.records[message["n"]].lease
            assert lease is not None
            assert lease.message is message

    run(main())
    broker.check()


def test_what_was_buffered_on_a_lost_connection_is_not_handed_over(
    run: VirtualRun, tools: type[Toolbox]
) -> None:
    """Once the outage is noticed, messages that belong to nobody are not yielded."""
    broker = tools.broker(bound=True)

    async def main() -> None:
        broker.publish(25)
        async with broker.stream() as stream:
            await several(stream, 20)
            await stream.flush()
            assert len(broker.leased()) == 6
            broker.cut()
            await asyncio.sleep(1)
            for message in await several(stream, 6):
                lease = broker.records[message["n"]].lease
                assert lease is None or lease.message is message
                assert message.attempt == 2

    run(main())
    assert len([r for r in broker.records if r.deliveries > 1]) == 6
    broker.check()


@pytest.mark.parametrize("where", ["anext", "enter", "take"])
def test_an_open_refused_for_good_surfaces_at_once(
    run: VirtualRun, broker: Broker, where: str
) -> None:
    """Refused credentials are an error, not an outage, and nothing is left behind."""
    broker.down = PermissionError("wrong password")

    async def main() -> None:
        stream = broker.stream()
        started = now()
        with pytest.raises(PermissionError, match="wrong password"):
            await call(stream, where)
        assert now() == started
        await breathe()
        assert not [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
        await stream.aclose()

    run(main())


@pytest.mark.parametrize("noticed_by", ["receive", "settle", "extend"])
def test_a_reconnection_refused_for_good_surfaces(
    run: VirtualRun, broker: Broker, noticed_by: str
) -> None:
    """Whoever notices the outage, an error that no retry cures reaches the caller."""

    async def main() -> None:
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

    run(main())


def test_a_read_that_fails_for_good_surfaces_once(run: VirtualRun, broker: Broker) -> None:
    """The error is raised by the next ``__anext__``; ``aclose`` does not raise it again."""

    async def main() -> None:
        broker.publish(1)
        broker.fault("receive", error=ValueError("no such group"))
        stream = broker.stream()
        with pytest.raises(ValueError, match="no such group"):
            await anext(stream)
        await stream.aclose()
        await stream.aclose()

    run(main())


def test_what_a_failing_take_had_collected_is_given_back_and_not_handed_over(
    run: VirtualRun, broker: Broker
) -> None:
    """Others have it by then."""

    async def main() -> None:
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

    run(main())


def test_a_failure_nobody_has_seen_is_raised_by_aclose(
    run: VirtualRun, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """``aclose`` is the last chance to tell; who was told need not read it in the log."""

    async def main() -> None:
        broker.publish(1)
        stream = broker.stream()
        await anext(stream)
        broker.fault("extend", error=ValueError("no such group"))
        await asyncio.sleep(LEASE)
        with pytest.raises(ValueError, match="no such group"):
            await stream.aclose()
        await stream.aclose()

    run(main())
    assert [r for r in caplog.records if r.levelno >= logging.ERROR] == []


def test_a_failure_of_a_dropped_stream_is_logged(
    run: VirtualRun, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """Where nobody is left to be told, the log is."""
    broker.refuse = lambda settlement: PermissionError("read only")

    async def main() -> None:
        broker.publish(1)
        stream = broker.stream()
        await (await anext(stream)).ack()
        del stream
        await asyncio.sleep(1)

    run(main())
    (record,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert "nobody was left to be told" in record.getMessage()
    assert "read only" in caplog.text


def test_closing_the_backend_tells_of_acks_that_were_refused(
    run: VirtualRun, broker: Broker
) -> None:
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

    async def main() -> None:
        broker.publish(1)
        backend = Backend()
        stream = backend.consume()
        await (await anext(stream)).ack()
        with pytest.raises(PermissionError, match="read only"):
            await backend.aclose()
        await stream.aclose()

    run(main())


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


# -- closing -----------------------------------------------------------------------------------


def test_closing_before_use_connects_to_nothing(run: VirtualRun, broker: Broker) -> None:
    """A stream that was never iterated closes at once, and its iteration is over."""

    async def main() -> None:
        stream = broker.stream()
        await stream.flush()
        await stream.aclose()
        await stream.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        assert await stream.take(3) == []
        assert broker.calls == []

    run(main())


def test_closing_twice_and_at_once_is_fine(run: VirtualRun, broker: Broker) -> None:
    """Each call returns when the stream is closed."""
    broker.latency = 1.0

    async def main() -> None:
        broker.publish(3)
        stream = broker.stream()
        await anext(stream)
        await asyncio.gather(*(stream.aclose() for _ in range(3)))
        assert broker.leased() == []
        calls = len(broker.calls)
        await stream.aclose()
        assert len(broker.calls) == calls

    run(main())


def test_closing_goes_on_when_the_caller_is_cancelled(run: VirtualRun, broker: Broker) -> None:
    """A timeout around ``aclose`` does not stop it half-way."""
    broker.latency = 1.0

    async def main() -> None:
        broker.publish(3)
        stream = broker.stream()
        await anext(stream)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await stream.aclose()
        await asyncio.sleep(10)
        assert broker.leased() == []

    run(main())


def test_closing_inside_the_loop_body_ends_the_loop(run: VirtualRun, broker: Broker) -> None:
    """The message in hand is released, and the loop ends at its next turn."""

    async def main() -> None:
        broker.publish(3)
        stream = broker.stream()
        received = []
        async for message in stream:
            received.append(message["n"])
            if message["n"] == 1:
                await stream.aclose()
        assert received == [0, 1]

    run(main())
    assert broker.acked() == [0]


@pytest.mark.parametrize("opened", [False, True])
def test_closing_while_the_broker_is_down_is_quick(
    run: VirtualRun, broker: Broker, opened: bool
) -> None:
    """With nothing to be lost, an unreachable broker is no error of ``aclose``."""

    async def main() -> None:
        if opened:
            broker.publish(1)
        else:
            broker.down = ConnectionRefusedError("down")
        stream = broker.stream()
        task = asyncio.create_task(stream.take(2))
        await asyncio.sleep(1)
        broker.cut(down=ConnectionRefusedError("down"))
        await asyncio.sleep(60)
        started = now()
        await stream.aclose()
        assert now() - started < 1
        await task

    run(main())


def test_closing_while_the_broker_is_down_says_that_acks_are_lost(
    run: VirtualRun, broker: Broker
) -> None:
    """Acks that cannot be delivered are an error: those messages will come again."""

    async def main() -> None:
        broker.publish(1)
        stream = broker.stream()
        message = await anext(stream)
        broker.cut(down=ConnectionRefusedError("down"))
        await asyncio.sleep(20)
        await message.ack()
        with pytest.raises(ConnectionLostError):
            await stream.aclose()

    run(main())


@pytest.mark.parametrize("stuck", ["hangs", "refuses"])
def test_closing_does_not_wait_for_ever_for_acks(
    run: VirtualRun, broker: Broker, stuck: str
) -> None:
    """A broker that never answers costs ten seconds and an error, and nothing runs on."""
    if stuck == "hangs":
        broker.fault("settle", delay=10_000)
    else:
        broker.refuse = lambda settlement: TimeoutError("busy")

    async def main() -> None:
        broker.publish(2)
        stream = broker.stream()
        await anext(stream)
        await anext(stream)
        started = now()
        with pytest.raises(ConnectionLostError):
            await stream.aclose()
        assert now() - started <= 11
        calls = len(broker.calls)
        await asyncio.sleep(60)
        assert len(broker.calls) == calls

    run(main())


@pytest.mark.parametrize("method", ["receive", "open"])
def test_a_receiver_that_hangs_is_cancelled_in_the_end(
    run: VirtualRun, broker: Broker, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    """A read that ignores wake(), or a connection that hangs, cannot keep a stream open."""
    broker.cancellable = True

    async def main() -> None:
        stream = broker.stream()
        broker.fault(method, delay=10_000)
        with suppress(TimeoutError):
            await ask_with_timeout(stream, 1)
        started = now()
        await stream.aclose()
        assert now() - started == pytest.approx(10)

    run(main())
    assert warned(caplog, "cancel")


def test_closing_during_a_slow_read_waits_for_it(run: VirtualRun, broker: Broker) -> None:
    """A read in progress is never cancelled, and what it brings is given back."""
    broker.fault("receive", answer=5.0)

    async def main() -> None:
        broker.publish(1)
        stream = broker.stream()
        with suppress(TimeoutError):
            await ask_with_timeout(stream, 1)
        assert broker.leased() == [0]
        await stream.aclose()
        assert broker.leased() == []
        assert broker.records[0].outcomes == ["release"]

    run(main())


def test_closing_while_reconnecting_does_not_start_another_read(
    run: VirtualRun, broker: Broker
) -> None:
    """A read begun after ``aclose`` would have nobody to wake it."""

    async def main() -> None:
        broker.publish(2)
        stream = broker.stream(prefetch=1)
        message = await anext(stream)
        broker.fault("open", delay=3.0)
        broker.fault("settle", error=RESET)
        await message.ack()
        task = asyncio.create_task(anext(stream, None))
        await asyncio.sleep(1)
        started = now()
        await stream.aclose()
        assert now() - started < 5
        assert await task is None
        assert broker.acked() == [0]

    run(main())


def test_the_waiter_sees_the_end_even_if_acks_are_lost(run: VirtualRun, broker: Broker) -> None:
    """Closing while the broker is down: the error is for who closes, the end for who waits."""

    async def main() -> None:
        broker.publish(1)
        stream = broker.stream()
        await anext(stream)
        broker.cut(down=ConnectionRefusedError("down"))
        task = asyncio.create_task(anext(stream, None))
        await asyncio.sleep(0)
        with pytest.raises(ConnectionLostError):
            await stream.aclose()
        assert await task is None

    run(main())


def test_an_extension_is_not_sent_on_a_connection_replaced_meanwhile(
    run: VirtualRun, broker: Broker
) -> None:
    """The tick that releases a buffer, and so notices an outage, also extends leases."""

    async def main() -> None:
        broker.publish(100)
        async with broker.stream() as stream:
            (await anext(stream)).detach()
            for _ in range(14):
                await anext(stream)
                await asyncio.sleep(0.5)
            await asyncio.sleep(5)
            assert len(broker.leased()) > 2
            broker.cut()
            await asyncio.sleep(2 * LEASE)
            assert broker.leased() == [0, 14]
            assert len(broker.receivers) == 2

    run(main())


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


@pytest.mark.parametrize("outage", [False, True])
def test_a_receiver_that_hangs_while_closing_is_given_up(
    run: VirtualRun, broker: Broker, outage: bool
) -> None:
    """Neither closing nor reconnecting waits for ever for a connection to end."""
    broker.fault("aclose", delay=10_000)

    async def main() -> None:
        broker.publish(1)
        stream = broker.stream(prefetch=1)
        await anext(stream)
        started = now()
        if outage:
            broker.cut()
            broker.publish(1)
            assert await anext(stream) == {"n": 1}
            assert now() - started < 6
        started = now()
        await stream.aclose()
        assert now() - started < 11

    run(main())


def test_closing_does_not_wait_for_ever_for_an_extension(run: VirtualRun, broker: Broker) -> None:
    """An extension that hangs does not keep a stream from closing."""
    broker.fault("extend", delay=10_000)

    async def main() -> None:
        broker.publish(1)
        stream = broker.stream()
        await anext(stream)
        await asyncio.sleep(LEASE)
        started = now()
        await stream.aclose()
        assert now() - started <= 21

    run(main())


def test_a_receiver_that_fails_to_close_does_not_keep_the_stream_open(
    run: VirtualRun, broker: Broker
) -> None:
    """Its error reaches the caller; the engine is gone all the same."""

    async def main() -> None:
        broker.publish(1)
        stream = broker.stream()
        await anext(stream)
        broker.fault("aclose", error=ValueError("cannot close"))
        with pytest.raises(ValueError, match="cannot close"):
            await stream.aclose()
        await stream.aclose()

    run(main())


def test_stop_takes_no_more_and_lets_messages_in_hand_be_settled(
    run: VirtualRun, broker: Broker
) -> None:
    """``stop`` ends the iteration and releases the buffer; settling goes on until ``aclose``."""

    async def main() -> None:
        broker.publish(40)
        stream = broker.stream()
        message = (await several(stream, 20))[-1]
        message.detach()
        await breathe()
        assert len(broker.leased()) > 5
        stream.stop()
        assert stream.closed
        await asyncio.sleep(2 * LEASE)
        assert broker.leased() == [19]
        assert await anext(stream, None) is None
        assert await message.ack()
        await stream.aclose()

    run(main())
    assert broker.acked() == list(range(20))


def test_stop_during_an_outage_still_delivers_what_is_settled(
    run: VirtualRun, broker: Broker
) -> None:
    """A drain begun while the broker is away does not give up on acks before ``aclose``."""

    async def main() -> None:
        broker.publish(2)
        stream = broker.stream()
        message, other = await stream.take(2)
        broker.cut(down=ConnectionRefusedError("down"))
        await message.ack()
        stream.stop()
        await asyncio.sleep(20)
        broker.down = None
        await other.ack()
        await stream.flush()
        await stream.aclose()

    run(main())
    assert broker.acked() == [0, 1]


def test_stop_ends_the_wait_for_a_first_connection(run: VirtualRun, broker: Broker) -> None:
    """A consumer told to stop before the broker could be reached stops."""
    broker.down = ConnectionRefusedError("down")

    async def consume(stream: MessageStream) -> list[Message]:
        async with stream:
            return [message async for message in stream]

    async def main() -> None:
        stream = broker.stream()
        task = asyncio.create_task(consume(stream))
        await asyncio.sleep(60)
        stream.stop()
        await breathe()
        assert await task == []

    run(main())


def test_a_connection_that_comes_after_stop_is_no_failure(run: VirtualRun, broker: Broker) -> None:
    """A consumer told to stop just before the broker answers stops quietly."""
    broker.latency = 2.0

    async def consume(stream: MessageStream) -> list[Message]:
        async with stream:
            return [message async for message in stream]

    async def main() -> None:
        stream = broker.stream()
        task = asyncio.create_task(consume(stream))
        await asyncio.sleep(1)
        stream.stop()
        assert await task == []

    run(main())
    broker.check()


def test_a_source_that_ends_before_it_begins_ends_the_stream(
    run: VirtualRun, broker: Broker
) -> None:
    """Who waits until the group exists is not left waiting."""
    broker.fault("open", error=EndOfStream())

    async def main() -> None:
        async with broker.stream() as stream:
            assert [message async for message in stream] == []

    run(main())


def test_what_arrives_after_stop_is_given_back(run: VirtualRun, broker: Broker) -> None:
    """A read that ends after ``stop`` neither yields nor keeps its messages."""
    broker.fault("receive", answer=5.0)

    async def main() -> None:
        broker.publish(1)
        stream = broker.stream()
        task = asyncio.create_task(anext(stream, None))
        await asyncio.sleep(1)
        started = now()
        stream.stop()
        assert await task is None
        assert now() == started
        await asyncio.sleep(5)
        assert broker.leased() == []
        assert await anext(stream, None) is None
        await stream.aclose()

    run(main())


# -- the event loop ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["anext", "take", "flush", "aclose", "enter", "ack"])
def test_a_stream_refuses_another_event_loop(
    run: VirtualRun, tools: type[Toolbox], method: str
) -> None:
    """Used from another loop while its own runs, a stream raises `LoopError` and is unharmed."""
    broker = tools.broker()
    caught: list[BaseException] = []

    async def misuse(stream: MessageStream, message: Message) -> None:
        try:
            await (message.ack() if method == "ack" else call(stream, method))
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
    broker.check()


# -- any backend -------------------------------------------------------------------------------


class Plain:
    """A backend with the three required methods and nothing else.

    Args:
        script: What its iterators do, one after the other: yield a dict, raise an error, wait
            (a number of seconds).
    """

    def __init__(self, *script: Any) -> None:
        self.script = list(script)
        self.resumed: list[int] = []
        self.tasks: set[asyncio.Task[Any] | None] = set()
        self.opened = 0
        self.closed = 0

    @classmethod
    def from_env(cls) -> Plain:
        return cls()

    async def publish(self, key: str, payload: dict[str, Any]) -> None:
        self.script.append(payload)

    async def consume(self, *, group: str | None = None) -> AsyncIterator[dict[str, Any]]:
        self.opened += 1
        self.tasks.add(asyncio.current_task())
        try:
            while self.script:
                step = self.script.pop(0)
                if isinstance(step, BaseException):
                    raise step
                if isinstance(step, dict):
                    yield step
                    self.resumed.append(step["n"])
                    self.tasks.add(asyncio.current_task())
                else:
                    await asyncio.sleep(step)
        finally:
            self.tasks.add(asyncio.current_task())
            self.closed += 1


def test_a_plain_iterator_is_resumed_exactly_when_the_caller_asks(run: VirtualRun) -> None:
    """Whatever resuming means to a plain backend happens neither early nor late."""
    backend = Plain({"n": 0}, {"n": 1}, {"n": 2}, 3600)

    async def main() -> None:
        async with open_stream(backend) as stream:
            for n in range(3):
                message = await anext(stream)
                assert (message.id, message.key, message.timestamp, message.attempt) == (
                    None, None, None, 1,
                )  # fmt: skip
                await asyncio.sleep(60)
                assert backend.resumed == list(range(n))

    run(main())
    assert backend.closed == 1


def test_the_end_of_a_plain_iterator_ends_the_stream(run: VirtualRun) -> None:
    """A finite iterator ends the loop, again and again; closing stays quiet."""
    backend = Plain({"n": 0}, {"n": 1})

    async def main() -> None:
        stream = open_stream(backend)
        assert [message["n"] async for message in stream] == [0, 1]
        assert [message["n"] async for message in stream] == []
        assert await stream.take(3) == []
        assert stream.closed
        await stream.aclose()

    run(main())
    assert backend.resumed == [0, 1]


def test_a_stream_whose_end_was_reached_may_be_dropped(run: VirtualRun) -> None:
    """``async for`` to the end without closing leaves nothing behind."""
    backend = Plain({"n": 0})

    async def main() -> None:
        async for _ in open_stream(backend):
            pass
        await asyncio.sleep(1)

    run(main())
    assert backend.closed == 1


def test_a_plain_iterator_that_loses_its_connection_is_replaced(
    run: VirtualRun, caplog: pytest.LogCaptureFixture
) -> None:
    """A `ConnectionError` out of a plain iterator is an outage: ``consume`` is called again."""
    backend = Plain({"n": 0}, ConnectionError("gone"), ConnectionError("gone"), {"n": 1}, 3600)

    async def main() -> None:
        async with open_stream(backend) as stream:
            assert [(await anext(stream))["n"] for _ in range(2)] == [0, 1]

    run(main())
    assert backend.opened == backend.closed == 3
    assert len(warned(caplog, "cannot be reached")) == 1


def test_a_plain_backend_keeps_its_buffer_when_the_connection_is_lost(run: VirtualRun) -> None:
    """Who will not redeliver must not lose what a cancelled ``take`` put back."""
    backend = Plain({"n": 0}, {"n": 1}, 5.0, ConnectionError("gone"), {"n": 2}, 3600)

    async def main() -> None:
        async with open_stream(backend) as stream:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1):
                    await stream.take(3)
            await asyncio.sleep(60)
            assert [m["n"] for m in await stream.take(3)] == [0, 1, 2]

    run(main())


def test_an_error_of_a_plain_iterator_surfaces(run: VirtualRun) -> None:
    """Any other error of a plain iterator ends the stream and reaches the caller, place and all."""
    backend = Plain({"n": 0}, ZeroDivisionError())

    async def main() -> None:
        stream = open_stream(backend)
        await anext(stream)
        with pytest.raises(ZeroDivisionError) as caught:
            await anext(stream)
        assert caught.traceback[-1].name == "consume"
        await stream.aclose()

    run(main())
    assert backend.closed == 1


def test_a_timeout_does_not_kill_a_plain_generator(run: VirtualRun) -> None:
    """``wait_for`` on a bare async generator ends it; through a stream it lives on."""
    backend = Plain(5.0, {"n": 0}, 3600)

    async def main() -> None:
        async with open_stream(backend) as stream:
            for _ in range(4):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(anext(stream), 1)
            assert await anext(stream) == {"n": 0}

    run(main())
    assert backend.opened == 1


def test_closing_ends_a_plain_generator_that_waits(run: VirtualRun) -> None:
    """``aclose`` from another task, which a bare generator refuses while it runs."""
    backend = Plain(3600)

    async def main() -> None:
        stream = open_stream(backend)
        task = asyncio.create_task(anext(stream, None))
        await asyncio.sleep(1)
        await stream.aclose()
        assert await task is None

    run(main())
    assert backend.closed == 1


def test_a_plain_generator_runs_in_one_task(run: VirtualRun) -> None:
    """So it may hold what belongs to a task across ``yield``: a task group, a context variable."""
    backend = Plain({"n": 0}, {"n": 1}, 3600)

    async def main() -> None:
        async with open_stream(backend) as stream:
            await anext(stream)
            await anext(stream)
            with suppress(TimeoutError):
                await ask_with_timeout(stream, 1)

    run(main())
    assert len(backend.tasks) == 1


def test_asyncio_run_closes_a_plain_generator(run: VirtualRun) -> None:
    """The loop's end closes the generator, with its stream kept or not."""
    backend = Plain({"n": 0}, 3600)
    kept: list[MessageStream] = []

    async def main() -> None:
        kept.append(open_stream(backend))
        await anext(kept[0])

    run(main(), tidy=False)
    assert backend.closed == 1


class Numbers:
    """An iterator without ``aclose``."""

    def __init__(self, script: list[Any]) -> None:
        self.script = script

    def __aiter__(self) -> Numbers:
        return self

    async def __anext__(self) -> dict[str, Any]:
        if not self.script:
            raise StopAsyncIteration
        item: dict[str, Any] = self.script.pop(0)
        return item


def test_consume_may_be_async_and_return_any_iterator(run: VirtualRun) -> None:
    """A coroutine that returns an async iterator is as good as an async generator."""
    backend: Any = Plain()

    async def consume(*, group: str | None = None) -> Numbers:
        await asyncio.sleep(1)
        return Numbers([{"n": 0}, {"n": 1}])

    backend.consume = consume

    async def main() -> None:
        async with open_stream(backend) as stream:
            assert [message["n"] async for message in stream] == [0, 1]

    run(main())
