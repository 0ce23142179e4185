"""Plays a history on a backend, and tells the oracle everything that happens."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import suppress
from typing import Any
from unittest import mock

from abe.backends.message_queue.base import Message, Outcome
from abe.backends.message_queue.consumer import AsyncLoopConsumer, RetryPolicy
from abe.errors import AbeError, Reject, Retry
from abe.testing.context import CaseContext
from abe.testing.model.entities import Hand
from abe.testing.model.history import History, Step
from abe.testing.model.publishers import DELAYS
from abe.testing.model.readers import GROUPS, Readers
from abe.types import ConsumerGroup

__all__ = ["Player"]

PASS = 6.0
"""Seconds of one step of time: longer than every delay."""
HANDLED = 6
ATTEMPTS = 3
HOUR = 3600.0
NOTHING = Step("", 0, 0, 0)


class Player(Readers):
    """Plays one history.

    Args:
        context: Of a run of its own; its backend is one of two on the same data.
        log: What happens is written there, to be read if the history fails.
    """

    def __init__(self, context: CaseContext, log: list[str]) -> None:
        super().__init__(context, log)
        self.since_lapse = 0.0
        self._wall: Any = None

    async def play(self, history: History) -> None:
        """Play every step, then see what is left.

        Raises:
            AssertionError: If something happened that cannot be.
        """
        try:
            self.backends.append(await self.context.another())
            for step in history:
                self.note(f"-- {'/'.join(map(str, step))}")
                await getattr(self, f"_{step.kind}")(step)
            await self._finish()
        finally:
            if self._wall is not None:
                self._wall.stop()

    async def _work(self, step: Step) -> None:
        """Run a consumer whose handler does what it likes, until it has handled some messages."""
        group = GROUPS[step.a % 4]
        if group not in self.oracle.groups:
            return
        reader, rng = self._reader(group, None), random.Random(step.c)
        enough, handled = asyncio.Event(), 0

        async def handle(message: Message) -> None:
            nonlocal handled
            handled += 1
            self.note(f"{reader} handles {message['n']} of {message.key}, {message.attempt}")
            hand = self.oracle.delivered(reader, message, self.now())
            if handled == HANDLED:
                enough.set()
            try:
                for _ in range(rng.randrange(4)):
                    await asyncio.sleep(0)
                if handled == HANDLED and step.b % 4 == 0:
                    await asyncio.Event().wait()  # until it is cancelled
            except asyncio.CancelledError:
                self._record(hand, Outcome.RELEASE)
                raise
            self._decide(hand, rng.randrange(10))

        consumer = AsyncLoopConsumer(
            self.backends[step.b % 2],
            group,
            concurrency=1 + step.b % 3,
            retry=RetryPolicy(ATTEMPTS, base=0.0, jitter=False),
            drain_timeout=self.poll,
        )
        self.note(f"work {reader}: group {group!r}, {consumer.concurrency} at once")
        self.oracle.opened(reader)
        running = asyncio.create_task(consumer.run(handle))
        with suppress(TimeoutError):
            await asyncio.wait_for(enough.wait(), 3 * self.poll)
        await self.within(consumer.shutdown(), f"shutdown() of {reader}")
        await self.within(running, f"run() of {reader}")
        self.oracle.closed(reader, self.now())

    def _decide(self, hand: Hand, choice: int) -> None:
        """Return from a handler or raise, and record the verdict that has to follow."""
        if choice < 6:
            self._record(hand, Outcome.ACK)
            return
        error = (Reject("unwanted"), Retry(DELAYS[3]), ValueError("ß"))[choice % 3]
        if isinstance(error, Reject):
            self._record(hand, Outcome.REJECT, why="unwanted")
        elif hand.message.attempt >= ATTEMPTS:
            self._record(hand, Outcome.REJECT, why=f"{type(error).__name__}: {error}")
        else:
            self._record(hand, Outcome.NACK, DELAYS[3] if isinstance(error, Retry) else 0.0)
        raise error

    # -- the broker and the clock ----------------------------------------------------------

    async def _pass(self, step: Step) -> None:
        """Let delays end, and no lease."""
        if self.since_lapse + PASS > (self.can.lease or 0.0) / 2:
            await self._lapse(step)
        else:
            self.since_lapse += PASS
            await self._advance(PASS)

    async def _lapse(self, step: Step) -> None:
        """Let every lease lapse, behind the backs of those who hold them."""
        if self.can.lease is None or not self.context.harness.has("advance_time"):
            return
        self.since_lapse = 0.0
        self.oracle.lapsed()  # first: a reader that waits may be quick
        await self._advance(self.can.lease * 1.05 + 0.1)

    async def _advance(self, seconds: float) -> None:
        if self.context.harness.has("advance_time"):
            self.passed += seconds
            await self.context.hook("advance_time", seconds)
            self.note(f"{seconds:g} s pass")

    async def _clock(self, step: Step) -> None:
        """Set this process's wall clock forward or back, by hours."""
        if self._wall is not None:
            self._wall.stop()
        real, hours = time.time, step.a % 5 - 2
        self._wall = mock.patch("time.time", side_effect=lambda: real() + hours * HOUR)
        self._wall.start()
        self.note(f"the wall clock is {hours} h off")

    async def _kill_consumer(self, step: Step) -> None:
        """Kill a process that holds messages; readers of its group would compete for them."""
        group = GROUPS[step.a % 4]
        if group not in self.oracle.groups or not self.context.harness.has("kill_consumer"):
            return
        await self._close_readers(group)
        count = min(self.oracle.certain(group), 1 + step.b % 3)
        if count:
            await self.context.hook("kill_consumer", self.context.namespace, group, count)
            self.note(f"a consumer of {group!r} was killed with {count} messages")
            self.oracle.stranded(group)

    # -- looking ---------------------------------------------------------------------------

    async def _look(self, step: Step) -> None:
        """Compare numbers and dead dead, once everything recorded is flushed."""
        for opened in self.streams:
            await self._flush_stream(opened)
        if self.can.stats:
            await self._check_stats()
        for group in self.oracle.groups if self.can.dead_letters else ():
            dead = await self._admin("dead_letters", group=group, limit=1000)
            self.oracle.check_dead(group, dead)

    async def _check_stats(self) -> None:
        """Compare the numbers, again while readers receive ahead and acks wait for company."""
        for _ in range(10):
            with suppress(AssertionError):
                self.oracle.check_stats(await self._admin("stats"))
                return
            await asyncio.sleep(0.02)
        self.oracle.check_stats(await self._admin("stats"))

    async def _admin(self, method: str, **options: Any) -> Any:
        """Call a method of inspection, again if the connection was cut before."""
        call = getattr(self.context.backend, method)
        try:
            return await self.within(call(**options), f"{method}()")
        except AbeError as error:
            if not (self.cut_lately and error.retryable):
                raise
            return await self.within(call(**options), f"{method}()")

    async def _replay(self, step: Step) -> None:
        group = GROUPS[step.a % 4]
        if self.can.dead_letters and group in self.oracle.groups:
            await self._look(step)
            count = await self._admin("replay", group=group)
            self.note(f"replayed {count} of {group!r}")
            self.oracle.replayed(group, count)

    async def _purge(self, step: Step) -> None:
        group = GROUPS[step.a % 4]
        if not self.can.admin or group not in self.oracle.groups:
            return
        if step.b % 2:
            await self._close_readers(group)
        await self._look(step)
        count = await self._admin("purge", group=group)
        self.note(f"purged {count} of {group!r}")
        self.oracle.purged(group, count)

    async def _close_readers(self, group: ConsumerGroup) -> None:
        for opened in [it for it in self.streams if it.reader.group == group]:
            await self._close_stream(opened)

    # -- the end ---------------------------------------------------------------------------

    async def _finish(self) -> None:
        """Receive all that must still come: before leases lapse, after that, and after replays."""
        self.note("-- the end")
        await self._read_out()
        for opened in list(self.streams):
            await self._close_stream(opened)
        if not self.oracle.groups:
            await self._close_stream(await self._open_stream(None))
        await self._pass(NOTHING)
        await self._drain_all()
        await self._lapse(NOTHING)
        await self._drain_all()
        for number in range(1, len(GROUPS)):
            await self._replay(Step("replay", number, 0, 0))
        await self._drain_all()

    async def _read_out(self) -> None:
        """Receive what the open streams must deliver: one may have received it ahead."""
        for group in {it.reader.group for it in self.streams if not it.reader.keys}:
            deadline = self.now() + self.context.harness.patience
            while missing := self.oracle.missing(group, self.now()):
                assert self.now() < deadline, f"stuck: {', '.join(missing[:5])}"
                for opened in self.streams:
                    if opened.reader.group == group:
                        await self._read_from(opened, 5)

    async def _drain_all(self) -> None:
        await asyncio.gather(*map(self._drain, self.oracle.groups))
        await self._look(NOTHING)

    async def _drain(self, group: ConsumerGroup) -> None:
        opened = await self._open_stream(group)
        deadline = self.now() + self.context.harness.patience
        quiet = self.context.harness.quiet
        while True:
            missing = self.oracle.missing(group)
            assert self.now() < deadline, f"lost: {', '.join(missing[:5])}"
            before = len(opened.mine)
            await self._read_from(opened, 100, quiet)
            if len(opened.mine) == before and not missing:
                break
        await self._close_stream(opened, clean=True)
