"""The reading half of a history: streams, read in every way, and settlements."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from abe.backends.message_queue.base import KeyFilter, Message, MessageStream, Outcome
from abe.testing.context import CaseContext
from abe.testing.model.entities import Hand, Reader
from abe.testing.model.history import Step
from abe.testing.model.publishers import DELAYS, Publishers
from abe.types import ConsumerGroup

__all__ = ["GROUPS", "Readers", "Stream"]

GROUPS: tuple[ConsumerGroup, ...] = (None, None, "g", "g.sub")
FILTERS = (None, None, None, "a.*", ["a", "b.**"])
READERS = 4
BURST = 8
OUTCOMES = (Outcome.ACK, Outcome.ACK, Outcome.ACK, Outcome.NACK, Outcome.RELEASE, Outcome.REJECT)


class Stream:
    """An open stream and what its reader was given.

    Attributes:
        way: ``anext``, ``take`` or ``receive``.
        hand: What it was given last, and acks by asking for more.
        mine: Everything that it was given and has not settled.
        asking: A call that waits for messages.
    """

    def __init__(self, reader: Reader, stream: MessageStream, way: str) -> None:
        self.reader = reader
        self.stream = stream
        self.way = way
        self.hand: list[Hand] = []
        self.mine: list[Hand] = []
        self.asking: asyncio.Task[None] | None = None


class Readers(Publishers):
    """Opens streams, reads them, settles and closes them.

    Args:
        context: Of a run of its own; its backend is one of two on the same data.
        log: What happens is written there, to be read if the history fails.
    """

    def __init__(self, context: CaseContext, log: list[str]) -> None:
        super().__init__(context, log)
        self.streams: list[Stream] = []
        self.names = 0

    async def _open(self, step: Step) -> None:
        if len(self.streams) == READERS:
            return
        await self._open_stream(
            GROUPS[step.a % 4],
            keys=FILTERS[step.b % 5] if self.can.keys == "consumer" else None,
            way=("anext", "take", "receive")[step.c % 3],
            prefetch=(None, None, None, 1, 3)[step.c // 3 % 5],
            backend=self.backends[step.b // 5 % 2],
        )

    async def _open_stream(
        self,
        group: ConsumerGroup,
        *,
        keys: Any = None,
        way: str = "take",
        prefetch: int | None = None,
        backend: Any = None,
    ) -> Stream:
        reader = self._reader(group, keys)
        stream = self.context.open(group, keys=keys, prefetch=prefetch, backend=backend)
        await self.within(stream.__aenter__(), f"opening {reader}")
        self.oracle.opened(reader)
        opened = Stream(reader, stream, way)
        self.streams.append(opened)
        self.note(f"open {reader}: group {group!r}, keys {keys}, {way}, prefetch {prefetch}")
        return opened

    def _reader(self, group: ConsumerGroup, keys: Any) -> Reader:
        self.names += 1
        return Reader(f"r{self.names}", group, KeyFilter(keys))

    def _chosen(self, step: Step) -> Stream | None:
        return self.streams[step.a % len(self.streams)] if self.streams else None

    async def _ask(self, opened: Stream, count: int, timeout: float | None) -> None:
        """Ask for messages, in the reader's way; a wait without end may be cancelled."""
        self._finish_hand(opened)
        if opened.way != "anext":
            self._given(opened, await getattr(opened.stream, opened.way)(count, timeout))
            return
        with suppress(StopAsyncIteration):
            for _ in range(count):
                self._finish_hand(opened)
                self._given(opened, [await anext(opened.stream)])

    def _finish_hand(self, opened: Stream) -> None:
        """Asking for more acks what was handed over before."""
        for hand in opened.hand:
            if hand.outcome is None:
                self._record(hand, Outcome.ACK)
        opened.hand = []

    def _given(self, opened: Stream, came: list[Message]) -> None:
        for message in came:
            self.note(f"{opened.reader} got {message['n']} of {message.key}, {message.attempt}")
            hand = self.oracle.delivered(opened.reader, message, self.now())
            opened.mine.append(hand)
            if opened.way != "receive":
                opened.hand.append(hand)

    async def _read(self, step: Step) -> None:
        opened = self._chosen(step)
        if opened is not None:
            await self._read_from(opened, 1 + step.b % BURST)

    async def _read_from(self, opened: Stream, count: int, seconds: float | None = None) -> None:
        """Ask, and stop asking after some time."""
        seconds = self.poll if seconds is None else seconds
        asking, opened.asking = opened.asking, None
        if asking is None:
            asking = asyncio.create_task(self._ask(opened, count, seconds))
        await asyncio.wait([asking], timeout=seconds if opened.way == "anext" else seconds * 10)
        if not asking.done():
            asking.cancel()
        await self._end(asking, f"{opened.way} of {opened.reader}")

    async def _end(self, asking: asyncio.Task[None], what: str) -> None:
        try:
            await self.within(asking, what)
        except asyncio.CancelledError:
            self.note(f"{what}: cancelled")

    async def _await(self, step: Step) -> None:
        """Begin to wait for messages, while other things happen."""
        opened = self._chosen(step)
        if opened is not None and opened.asking is None:
            opened.asking = asyncio.create_task(self._ask(opened, 1 + step.b % BURST, None))
            self.note(f"{opened.reader} waits")
            await asyncio.sleep(0)

    async def _cancel(self, step: Step) -> None:
        """Cancel a wait, or a call that has just begun."""
        opened = self._chosen(step)
        if opened is None:
            return
        asking, opened.asking = opened.asking, None
        if asking is None:
            asking = asyncio.create_task(self._ask(opened, 1 + step.b % BURST, None))
            for _ in range(step.c % 12):
                await asyncio.sleep(0)
        asking.cancel()
        await self._end(asking, f"{opened.way} of {opened.reader}")

    async def _unread(self, step: Step) -> None:
        opened = self._chosen(step)
        if opened is None or opened.asking is not None or opened.way != "anext" or not opened.hand:
            return
        hand = opened.hand.pop()
        if hand.outcome is None:
            assert opened.stream.unread(hand.message), f"unread() of {hand.copy} is False"
            self.oracle.unread(hand)
            opened.mine.remove(hand)
            self.note(f"{opened.reader} unread {hand.copy}")

    # -- settling --------------------------------------------------------------------------

    def _record(self, hand: Hand, outcome: Outcome, delay: float = 0.0, why: str = "") -> None:
        self.note(f"{hand.reader}: {outcome} {hand.copy} {delay or ''}{why}")
        self.oracle.recorded(hand, outcome, now=self.now(), delay=delay, why=why)

    async def _settle(self, step: Step) -> None:
        hands = [hand for opened in self.streams for hand in opened.mine]
        if not hands:
            return
        hand = hands[step.a % len(hands)]
        message, outcome = hand.message, OUTCOMES[step.b % 6]
        if hand.outcome is not None:
            first = message.outcome in (outcome, None)
            again = await self._say(message, outcome, 0.0, "again")
            assert again is first, f"{hand.copy}: {outcome} after {message.outcome} is {again}"
            return
        if (outcome is Outcome.NACK and not self.can.nack_delay) or not getattr(
            self.can, outcome, True
        ):
            outcome = Outcome.ACK
        delay = DELAYS[step.c % 5] if outcome is Outcome.NACK else 0.0
        why = f"reason {step.c}" if outcome is Outcome.REJECT else ""
        lost = message.outcome is Outcome.LOST
        if not lost:
            self._record(hand, outcome, delay, why)
        won = await self._say(message, outcome, delay, why)
        assert won is not lost, f"{outcome} of {hand.copy} is {won}"
        assert not lost or hand.doubt, f"{hand.copy} was lost in its lease"

    async def _say(self, message: Message, outcome: Outcome, delay: float, why: str) -> bool:
        if outcome is Outcome.NACK:
            return await message.nack(delay)
        if outcome is Outcome.REJECT:
            return await message.reject(why)
        return await (message.ack() if outcome is Outcome.ACK else message.release())

    async def _flush(self, step: Step) -> None:
        opened = self._chosen(step)
        if opened is not None:
            await self._flush_stream(opened)

    async def _flush_stream(self, opened: Stream) -> None:
        recorded = self.oracle.recorded_by(opened.reader)
        await self.within(opened.stream.flush(), f"flush() of {opened.reader}")
        self.note(f"{opened.reader} flushed")
        self.oracle.settled(recorded, self.now())
        opened.mine = [hand for hand in opened.mine if hand.outcome is None]

    async def _close(self, step: Step) -> None:
        opened = self._chosen(step)
        if opened is not None:
            await self._close_stream(opened, clean=step.b % 2 == 0, how=step.c)

    async def _close_stream(self, opened: Stream, *, clean: bool = False, how: int = 9) -> None:
        """Close a stream, as the end of its ``async with`` or from outside.

        A waiter sees the end. A closing that is cancelled is repeated.
        """
        self.streams.remove(opened)
        acks = clean and opened.way == "take"
        for hand in opened.hand:  # what comes from receive() is its owner's
            if hand.outcome is None:
                self._record(hand, Outcome.ACK if acks else Outcome.RELEASE)
        call = opened.stream.__aexit__(None, None, None) if clean else opened.stream.aclose()
        cancelled, error = await self._disturbed(call, how, f"closing {opened.reader}")
        if cancelled:
            await self.within(opened.stream.aclose(), f"closing {opened.reader} again")
        if opened.asking is not None:
            await self._end(opened.asking, f"{opened.way} of {opened.reader}, which was closed")
        self.context.forget(opened.stream)
        self.note(f"closed {opened.reader} {error or ''}")
        self.oracle.closed(opened.reader, self.now(), delivered=error is None)
