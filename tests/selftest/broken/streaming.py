"""Broken streams and lives."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Sequence
from typing import Any, Self

from abe.backends.message_queue.base import (
    Delivery,
    Message,
    MessageStream,
    Outcome,
    Outgoing,
    SettleFailure,
    Settlement,
)
from abe.errors import BackendClosedError, ConfigurationError, PublishError
from tests.selftest.broken.registry import Streamed, broken
from tests.selftest.reference import ReferenceBackend, ReferenceReceiver
from tests.selftest.store import Lease, Store


class _DiesOfTimeouts(MessageStream):
    __slots__ = ()

    async def __anext__(self) -> Message:
        try:
            return await super().__anext__()
        except asyncio.CancelledError:
            self.stop()
            raise


@broken("timed_out_wait_loses_nothing")
class DiesOfTimeouts(Streamed):
    """A timeout around the next message ends the stream, as it ends a generator."""

    STREAM = _DiesOfTimeouts


class _TakesForever(MessageStream):
    __slots__ = ()

    async def take(self, n: int = 1, timeout: float | None = None, **more: Any) -> list[Message]:
        return await super().take(n, None if n == 5 else timeout, **more)


@broken("take_returns_what_came", says="take(5, timeout=…)")
class TakeIgnoresItsTimeout(Streamed):
    """take() waits until there are as many as asked for."""

    STREAM = _TakesForever


class _ExitNeverAcks(MessageStream):
    __slots__ = ()

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()


@broken("take_acks_on_clean_exit", says="more often than published")
class ExitNeverAcks(Streamed):
    """Leaving the block does not ack what take() has returned."""

    STREAM = _ExitNeverAcks


class _TakeAcks(MessageStream):
    __slots__ = ()

    async def take(self, n: int = 1, timeout: float | None = None, **more: Any) -> list[Message]:
        taken = await super().take(n, timeout, **more)
        for message in taken:
            await message.ack()
        return taken


@broken("take_gives_back_on_exception", says="never arrived")
class TakeAcksAtOnce(Streamed):
    """What take() returns is acked already."""

    STREAM = _TakeAcks


class _TakesOneByOne(MessageStream):
    __slots__ = ()

    async def take(self, n: int = 1, timeout: float | None = None, **more: Any) -> list[Message]:
        if n < 5:
            return await super().take(n, timeout, **more)
        return [await anext(self) for _ in range(n)]


@broken("cancelled_take_puts_back", says="never arrived")
class CancelledTakeLoses(Streamed):
    """take() collects by iterating, which acks what a cancellation then loses."""

    STREAM = _TakesOneByOne


class _ForgetsUnread(MessageStream):
    __slots__ = ()

    def unread(self, message: Message) -> bool:
        return True


@broken("unread_puts_back", says="after unread()")
class UnreadIsIgnored(Streamed):
    """unread() puts nothing back."""

    STREAM = _ForgetsUnread


class _NeverEnds(MessageStream):
    __slots__ = ()

    async def __anext__(self) -> Message:
        try:
            return await super().__anext__()
        except StopAsyncIteration:
            await asyncio.Event().wait()
            raise


@broken("closing_ends_a_waiting_consumer", "closing_ends_streams", says="to end once closed")
class ClosedStreamWaitsOn(Streamed):
    """A consumer that waits when its stream is closed waits on."""

    STREAM = _NeverEnds


@broken(
    "close_gives_back_what_was_ahead",
    "release_is_for_another",
    "closed_stream_settles_nothing",
    "dropped_stream_gives_back",
    "break_redelivers",
    "closing_gives_back",
    says="never arrived",
)
class ReleaseIsForgotten(ReferenceBackend):
    """A released message stays leased until the lease lapses."""

    class RECEIVER(ReferenceReceiver):
        async def settle(self, settlements: Sequence[Settlement]) -> Sequence[SettleFailure]:
            rest = [s for s in settlements if s.outcome is not Outcome.RELEASE]
            return await super().settle(rest)


class _AckAfterRelease(Message):
    __slots__ = ()

    async def ack(self) -> bool:
        return await super().ack() or self.outcome is Outcome.RELEASE


@broken("closed_stream_settles_nothing", says="ack() returned True")
class AckAfterClose(ReferenceBackend):
    """What closing has released can seemingly still be acked."""

    class RECEIVER(ReferenceReceiver):
        def deliver(self, lease: Lease) -> Delivery:
            m = super().deliver(lease).message
            own = _AckAfterRelease(m, m.id, m.key, m._time, m.attempt, m.headers)
            return Delivery(own, lease)


class _DropsSilently(MessageStream):
    __slots__ = ()

    def __del__(self) -> None:
        self.subscription.abandon()


@broken("dropped_stream_gives_back", says="no ResourceWarning")
class DropsSilently(Streamed):
    """A stream dropped with a message in hand does not warn."""

    STREAM = _DropsSilently


class _StopReleasesAll(MessageStream):
    __slots__ = ()

    def stop(self) -> None:
        for delivery in list(self.subscription._ledger.held):
            self.subscription.settle(delivery, Outcome.RELEASE)
        super().stop()


@broken("shutdown_waits_for_handlers", says="processed")
class StopTakesMessagesAway(Streamed):
    """Stopping a stream gives back messages that are still worked on."""

    STREAM = _StopReleasesAll


# -- life ----------------------------------------------------------------------------------


@broken("closing_twice_is_fine", says="closed before")
class ClosingTwiceFails(ReferenceBackend):
    """A second aclose() raises."""

    async def aclose(self) -> None:
        """Close once."""
        if self._closed:
            raise BackendClosedError("closed before")
        await super().aclose()


@broken("async_with_closes", says="after async with")
class ExitDoesNotClose(ReferenceBackend):
    """Leaving the block does not close the backend."""

    async def __aexit__(self, *error: object) -> None:
        return


@broken("async_with_closes", says="async with gave")
class EnterGivesNothing(ReferenceBackend):
    """Entering the block gives None."""

    async def __aenter__(self) -> Self:
        return None  # type: ignore[return-value]


@broken("closed_backend_refuses", "async_with_closes", says="should raise BackendClosedError")
class UsableAfterClose(ReferenceBackend):
    """A closed backend goes on."""

    def _check_open(self) -> None:
        return


@broken("closing_ends_streams", says="aclose() while a consumer waits")
class HangingClose(ReferenceBackend):
    """Closing waits for a consumer that waits for messages."""

    async def aclose(self) -> None:
        """Wait for every consumer."""
        while self._subscriptions:  # noqa: ASYNC110 - it is broken
            await asyncio.sleep(0.01)
        await super().aclose()


@broken("closing_twice_is_fine", says="cannot be cancelled")
class UnstoppableClose(ReferenceBackend):
    """Closing never ends and cannot be cancelled."""

    async def aclose(self) -> None:
        """Block the event loop."""
        threading.Event().wait(8)


@broken("closing_gives_back", "reopening_loses_nothing", says="never arrived")
class LosesHeldOnClose(ReferenceBackend):
    """What consumers hold when the backend is closed is lost."""

    async def aclose(self) -> None:
        """Drop what is held."""
        for group in self.store.groups.values():
            for seq in [seq for seq, place in group.places.items() if place.lease is not None]:
                del group.places[seq]
        await super().aclose()


@broken("closing_publisher_loses_nothing", says="never arrived")
class ClosesBeforeSending(ReferenceBackend):
    """publish() returns at once, and closing drops what has not been sent yet."""

    async def _send(self, items: Sequence[Outgoing]) -> None:
        def send() -> None:
            if not self._closed:
                self.store.publish(items, self.maxsize)

        asyncio.get_running_loop().call_later(0.01, send)


@broken("lively_use_leaves_nothing", says="left behind after closing: 1 tasks")
class LeaksTask(ReferenceBackend):
    """A background task outlives the backend."""

    async def publish(self, *args: Any, **extras: Any) -> None:
        """Start it."""
        if not hasattr(self, "task"):
            self.task = asyncio.create_task(asyncio.Event().wait(), name="leaked")
        await super().publish(*args, **extras)


@broken("lively_use_leaves_nothing", says="thread 'leaked'")
class LeaksThread(ReferenceBackend):
    """A thread outlives the backend."""

    async def publish(self, *args: Any, **extras: Any) -> None:
        """Start it."""
        if not hasattr(self, "thread"):
            wait = threading.Event().wait
            self.thread = threading.Thread(target=wait, args=(10,), name="leaked", daemon=True)
            self.thread.start()
        await super().publish(*args, **extras)


@broken("lively_use_leaves_nothing", says="open socket")
class LeaksSocket(ReferenceBackend):
    """A socket outlives the backend."""

    leaked: socket.socket | None = None

    async def publish(self, *args: Any, **extras: Any) -> None:
        """Open it."""
        if type(self).leaked is None:
            type(self).leaked = socket.socket()
        await super().publish(*args, **extras)


@broken("lively_use_leaves_nothing", says="nobody has handled")
class HidesItsErrors(ReferenceBackend):
    """An error in a background task is looked at by nobody."""

    async def publish(self, *args: Any, **extras: Any) -> None:
        """Fail beside."""

        async def fail() -> None:
            raise ValueError("in the background")

        await super().publish(*args, **extras)
        _ = asyncio.ensure_future(fail())  # noqa: RUF006 - it is broken


@broken("ping_answers", says="already pinged")
class PingWorksOnce(ReferenceBackend):
    """ping() opens a connection of its own and never answers again."""

    async def ping(self, timeout: float = 5.0) -> None:
        """Answer once."""
        if hasattr(self, "pinged"):
            raise ConfigurationError("already pinged")
        self.pinged = True


@broken("ping_tells_unreachable", says="should raise ConnectionLostError")
class PingLies(ReferenceBackend):
    """ping() returns whatever the broker does."""

    async def ping(self, timeout: float = 5.0) -> None:
        """Return."""
        self._check_open()


# -- losing the connection -----------------------------------------------------------------


@broken("restart_keeps_messages", says="never arrived")
class ForgetsOnRestart(ReferenceBackend):
    """Messages are gone after a restart of the broker, though declared durable."""

    class STORE(Store):
        def cut(self) -> None:
            self.log.clear()
            for group in self.groups.values():
                group.places.clear()
            super().cut()


@broken(
    "consumer_outlives_restart",
    "consumer_outlives_cut",
    "unsettled_survives_cut",
    "consumer_survives_cut",
    says="was cut",
)
class DiesOfCuts(ReferenceBackend):
    """A lost connection ends the consumer instead of being restored."""

    class RECEIVER(ReferenceReceiver):
        def check(self) -> None:
            if self.connection != self.store.connection:
                raise ConfigurationError("the connection was cut")
            super().check()


@broken("consumer_outlives_cut", "consumer_outlives_restart", "load_through_cuts", says="after the")
class SilentlyDead(ReferenceBackend):
    """A consumer whose connection is cut waits on and gets nothing."""

    class RECEIVER(ReferenceReceiver):
        async def receive(self, max_messages: int, timeout: float) -> Sequence[Delivery]:
            if self.connection != self.store.connection:
                while not self.woken:
                    self.news.clear()
                    await self.news.wait()
                return ()
            return await super().receive(max_messages, timeout)

        def check(self) -> None:
            if self.connection == self.store.connection:
                super().check()


@broken("unsettled_survives_cut", says="nacked after the cut")
class SettlementLostInCut(ReferenceBackend):
    """What is settled while the connection is down is dropped, and its message with it."""

    class RECEIVER(ReferenceReceiver):
        async def settle(self, settlements: Sequence[Settlement]) -> Sequence[SettleFailure]:
            if self.connection != self.store.connection:
                return ()
            return await super().settle(settlements)


@broken("publisher_outlives_cut", "consumer_outlives_cut", says="still fails")
class PublisherDiesOfCuts(ReferenceBackend):
    """Once its connection was cut, a backend never publishes again."""

    async def _send(self, items: Sequence[Outgoing]) -> None:
        if self.store.connection:
            raise PublishError("the connection was cut")
        await super()._send(items)
