"""One consumer of a group."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from abe.backends.message_queue.base import (
    Delivery,
    KeyFilter,
    Outcome,
    Receiver,
    SettleFailure,
    Settlement,
    dead_headers,
    log,
)
from abe.errors import AbeError, ConfigurationError, ConnectionLostError
from abe.types import ConsumerGroup
from abe_backend_redis import scripts
from abe_backend_redis.codec import Receipt, deliveries, lua_patterns, stored_group
from abe_backend_redis.failures import GroupMissingError, UnreachedError
from abe_backend_redis.link import HEALTH, Link

__all__ = ["RedisReceiver", "Shared"]

logger = logging.getLogger(__name__)

LONGEST_WAIT = 5.0
"""Seconds of a blocked read, after which a connection that was silently dropped is noticed."""
READ_BYTES = 8 << 20
"""As many bytes of payload are read at once, and one message more, so that large ones do not hold
up Redis."""


class Shared(NamedTuple):
    """What all receivers of a backend share; ``control`` does all but taking and waiting."""

    control: Link
    prefix: str
    lease: float
    open_groups: Callable[[], Sequence[str]]
    check: Callable[[], Awaitable[None]]
    """Called when a receiver has opened."""
    unanswered: defaultdict[str, dict[str, int]]
    """Consumer and number of answers that did not arrive, by group."""


class RedisReceiver(Receiver):
    """Takes messages with a script, and waits for more in a blocking read that takes none.

    So a read that is cut or ended early strands nothing. Where an answer with messages may have
    got lost, these are recalled before anything else is taken: in order, and uncounted.
    """

    def __init__(self, link: Link, shared: Shared, group: ConsumerGroup, keys: KeyFilter) -> None:
        self.lease: float | None = shared.lease
        self._link = link
        self._shared = shared
        self._control = shared.control
        self._shown = group
        self._group = stored_group(group)
        self._filter = lua_patterns(keys)
        self._longest = min(max(shared.lease / 2, 0.25), LONGEST_WAIT)
        # The scripts read the lease from the name.
        self._name = f"{secrets.token_hex(8)}-{int(shared.lease * 1000)}"
        self._wake = f"{shared.prefix}wake:{self._group}"
        self._answers = 0
        self._woken = False
        self._waits = False
        self._waker: asyncio.Task[None] | None = None

    async def open(self) -> None:
        # If Redis has lost all groups, every one that is open is made again.
        await self._link.run(scripts.OPEN, self._group, *self._shared.open_groups())
        await self._recall()
        await self._shared.check()

    async def _recall(self) -> None:
        """Let go of what was handed over in answers that did not arrive."""
        unanswered = self._shared.unanswered[self._group]
        pairs = list(unanswered.items())
        if pairs:
            flat = [part for pair in pairs for part in pair]
            await self._control.run(scripts.RECALL, self._group, *flat)
            for name, _ in pairs:
                unanswered.pop(name, None)

    async def receive(self, max_messages: int, timeout: float) -> Sequence[Delivery]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while not self._woken and loop.time() < deadline:
            flat, extras, epoch, vanished, due, last, wake = await self._take(max_messages)
            if vanished:
                self._warn_of_vanished(vanished)
            if flat:
                found, broken = deliveries(self._name, flat, extras, epoch)
                if broken:
                    found = await self._set_aside(found, broken)
                if found:
                    return found
                continue
            pause = min(deadline - loop.time(), self._longest)
            if due >= 0:
                pause = min(pause, due / 1000)
            if pause > 0:
                await self._wait(pause, last, wake)
        self._woken = False
        return ()

    async def _take(self, count: int) -> list[Any]:
        self._answers += 1
        try:
            answer: list[Any] = await self._link.run(
                scripts.TAKE,
                *(self._group, self._name, self._answers, count, READ_BYTES, self._filter),
            )
        except GroupMissingError as error:
            raise await self._missing(error) from error
        except UnreachedError:
            raise
        except (ConnectionLostError, asyncio.CancelledError):
            self._forget_answer()
            raise
        return answer

    def _forget_answer(self) -> None:
        self._shared.unanswered[self._group][self._name] = self._answers

    async def _missing(self, error: GroupMissingError) -> AbeError:
        """Tell a group that was deleted from one that was lost with the broker's data."""
        if await self._link.call("EXISTS", f"{self._shared.prefix}gone:{self._group}"):
            return ConfigurationError(f"group {self._shown!r} was deleted; open a new stream")
        return ConnectionLostError(f"Redis has lost group {self._shown!r}: {error}")

    async def _set_aside(
        self, found: Sequence[Delivery], broken: Mapping[int, str]
    ) -> list[Delivery]:
        """Send what cannot be decoded to the dead letters, and return the rest."""
        rejected = [Settlement(found[n], Outcome.REJECT, reason=why) for n, why in broken.items()]
        try:
            await self._settle(rejected)
        except BaseException:
            self._forget_answer()  # or the others would wait for their lease to lapse
            raise
        for position, why in broken.items():
            message = found[position].message
            log(
                logger,
                logging.ERROR,
                "message %s of key %s is set aside, to the dead letters of group %r: it %s",
                *(message.id, message.key, self._shown, why),
                extra={"backend": "redis"},
            )
        return [delivery for n, delivery in enumerate(found) if n not in broken]

    def _warn_of_vanished(self, count: int) -> None:
        log(
            logger,
            logging.WARNING,
            "%d messages of group %r were lost: something other than abe has deleted or trimmed "
            "them; set Redis' maxmemory-policy to noeviction",
            count,
            self._shown,
            extra={"backend": "redis"},
        )

    async def _wait(self, seconds: float, last: bytes, wake: bytes) -> None:
        """Return when there may be something to take: a new entry in messages or wake."""
        streams = (f"{self._shared.prefix}messages", self._wake, last, wake)
        block = ("XREAD", "COUNT", 1, "BLOCK", max(1, int(seconds * 1000 + 0.999)))
        self._waits = True
        try:
            # It takes nothing: if its connection is lost, so is nothing else.
            with suppress(ConnectionLostError):
                await self._link.call(*block, "STREAMS", *streams, limit=seconds + HEALTH)
        finally:
            self._waits = False

    def wake(self) -> None:
        self._woken = True
        if self._waits and self._waker is None:
            self._waker = asyncio.create_task(self._end_wait(), name="abe-redis-wake")

    async def _end_wait(self) -> None:
        try:
            await self._control.call("XADD", self._wake, "MAXLEN", 1, "*", "x", 1)
        except AbeError:  # it is away or full: the read ends with its socket
            await self._link.aclose()
        finally:
            self._waker = None

    async def begin(self, deliveries: Sequence[Delivery]) -> None:
        flat = [part for delivery in deliveries for part in delivery.receipt[:3]]
        with suppress(GroupMissingError):
            await self._control.run(scripts.BEGIN, self._group, *flat)

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[SettleFailure]:
        try:
            lost = await self._settle(settlements)
        except ConnectionLostError:
            # Redis may have done it and only the answer is missing: the scripts look then whether
            # the group still waits for what is not ours any more.
            for settlement in settlements:
                delivery = settlement.delivery
                delivery.receipt = (*delivery.receipt[:4], 1)
            raise
        if not lost:
            return ()
        return [SettleFailure(s) for s in settlements if s.delivery.receipt in lost]

    async def _settle(self, settlements: Sequence[Settlement]) -> set[Receipt]:
        # After a reconnection there may be several consumers: receipts keep the name they got.
        acks: defaultdict[tuple[str, int, int, int], list[str]] = defaultdict(list)
        others: list[Settlement] = []
        for settlement in settlements:
            if settlement.outcome is not Outcome.ACK:
                others.append(settlement)
                continue
            consumer, entry, attempt, epoch, again = settlement.delivery.receipt
            acks[consumer, attempt, epoch, again].append(entry)
        lost: set[Receipt] = set()
        try:
            for (consumer, *rest), entries in acks.items():
                answer = await self._control.run(
                    scripts.ACK, self._group, consumer, *rest, *entries
                )
                lost |= {(consumer, entry.decode(), *rest) for entry in answer}
            if others:
                lost |= await self._give_back(others)
        except GroupMissingError:
            return {settlement.delivery.receipt for settlement in settlements}
        return lost

    async def _give_back(self, settlements: Sequence[Settlement]) -> set[Receipt]:
        flat: list[str | int] = []
        for delivery, outcome, delay, reason in settlements:
            message, (consumer, entry, attempt, _, again) = delivery.message, delivery.receipt
            headers = ""
            if outcome is Outcome.REJECT:
                own = dead_headers(
                    {}, reason=reason, attempts=attempt, id=message.id, key=message.key
                )
                headers = json.dumps(own, ensure_ascii=False)
            wait = int(delay * 1000 + 0.999)
            flat += (consumer, entry, attempt, again, outcome, wait, headers)
        lost = await self._control.run(scripts.BACK, self._group, *flat)
        return {settlements[position].delivery.receipt for position in lost}

    async def extend(self, deliveries: Sequence[Delivery], seconds: float) -> Sequence[Delivery]:
        begun = max(0, int(((self.lease or seconds) - seconds) * 1000))
        flat = [part for delivery in deliveries for part in delivery.receipt[:3]]
        try:
            lost = await self._control.run(scripts.EXTEND, self._group, begun, *flat)
        except GroupMissingError:
            return deliveries
        return [deliveries[position] for position in lost]

    async def aclose(self) -> None:
        self._woken = True
        if self._waker is not None:
            await asyncio.wait([self._waker])
        with suppress(AbeError, GroupMissingError):
            if self._name in self._shared.unanswered[self._group]:
                await self._recall()
            elif self._link.connected:
                await self._link.run(scripts.CLOSE, self._group, self._name)
        await self._link.aclose(for_good=True)
