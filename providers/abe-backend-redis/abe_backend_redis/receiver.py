"""One consumer of a group."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from abe.backends.message_queue.base import (
    Delivery,
    KeyFilter,
    Outcome,
    Receiver,
    SettleFailure,
    Settlement,
    dead_headers,
)
from abe.errors import AbeError, ConfigurationError, ConnectionLostError
from abe.types import ConsumerGroup
from abe_backend_redis import scripts
from abe_backend_redis.codec import Receipt, deliveries, lua_patterns, stored_group
from abe_backend_redis.failures import GroupMissingError
from abe_backend_redis.link import Link

__all__ = ["RedisReceiver"]

UNBLOCK_PAUSE = 0.02
"""Seconds between two attempts to end a blocked read, which may not have reached Redis yet."""
READ_BYTES = 8 << 20
"""As many bytes of payload are read at once, and one message more, so that large ones do not hold
up Redis."""
FIRST_READ = 64
"""Most messages read at once while their size is not known."""


class RedisReceiver(Receiver):
    """Takes messages with a script, and waits for more in a blocking read that takes none.

    So a read that is cut or ended early strands nothing.

    Args:
        link: A connection of its own, for taking and waiting.
        control: The connection that all receivers share for everything else.
        prefix: What every Redis key begins with, hash tag included.
        group: The consumer group.
        keys: Only keys that match.
        lease: Seconds until others may take what is neither settled nor extended.
        keep: Whether settled messages are kept for later groups.
        doubtful: Shared by all receivers of a backend, because a settlement that got no answer is
            tried again by the next one.
    """

    def __init__(
        self,
        link: Link,
        control: Link,
        *,
        prefix: str,
        group: ConsumerGroup,
        keys: KeyFilter,
        lease: float,
        keep: bool,
        doubtful: set[Receipt],
    ) -> None:
        self.lease: float | None = lease
        self._link = link
        self._control = control
        self._prefix = prefix
        self._shown = group
        self._group = stored_group(group)
        self._patterns = lua_patterns(keys)
        self._keep = int(keep)
        self._doubtful = doubtful
        self._most = FIRST_READ
        self._longest = min(max(lease / 2, 0.25), 20.0)
        # The scripts read the lease from the name.
        self._name = f"{secrets.token_hex(8)}-{int(lease * 1000)}"
        self._client = self._opened = 0
        self._woken = False
        self._waits = False
        self._waker: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Connect, and make the group."""
        await self._link.run(scripts.OPEN, self._group)

    async def receive(self, max_messages: int, timeout: float) -> Sequence[Delivery]:
        """Return messages as soon as there are any; nothing after ``timeout`` or `wake`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while not self._woken and loop.time() < deadline:
            answer = await self._take(min(max_messages, self._most))
            if answer[0]:
                payloads = answer[0][2::3]
                self._most = max(1, READ_BYTES * len(payloads) // (1 + sum(map(len, payloads))))
                return deliveries(self._name, *answer)
            _, _, _, due, log, wake = answer
            pause = min(deadline - loop.time(), self._longest)
            if due >= 0:
                pause = min(pause, due / 1000)
            if pause > 0:
                await self._identify()
                if not self._woken:
                    await self._wait(pause, log, wake)
        self._woken = False
        return ()

    async def _take(self, count: int) -> list[Any]:
        try:
            answer: list[Any] = await self._link.run(
                scripts.TAKE,
                self._group,
                self._name,
                count,
                self._keep,
                READ_BYTES,
                *self._patterns,
            )
        except GroupMissingError as error:
            raise await self._missing(error) from error
        return answer

    async def _missing(self, error: GroupMissingError) -> AbeError:
        """Tell a group that was deleted from one that was lost with the broker's data."""
        if await self._link.call("EXISTS", f"{self._prefix}gone:{self._group}"):
            return ConfigurationError(f"group {self._shown!r} was deleted; open a new stream")
        return ConnectionLostError(f"Redis has lost group {self._shown!r}: {error}")

    async def _identify(self) -> None:
        """Know which connection to end a blocked read on; one that idled may have been replaced."""
        if self._link.opened != self._opened:
            self._client = await self._link.call("CLIENT", "ID")
            self._opened = self._link.opened

    async def _wait(self, seconds: float, log: bytes, wake: bytes) -> None:
        """Return when there may be something to take: a new entry in log or wake."""
        streams = (f"{self._prefix}log", f"{self._prefix}wake:{self._group}", log, wake)
        milliseconds = max(1, int(seconds * 1000 + 0.999))
        self._waits = True
        try:
            await self._link.call(
                "XREAD", "COUNT", 1, "BLOCK", milliseconds, "STREAMS", *streams, wait=seconds
            )
        finally:
            self._waits = False

    def wake(self) -> None:
        """End a waiting `receive`, and the next one if none waits."""
        self._woken = True
        if self._waits and self._waker is None:
            self._waker = asyncio.create_task(self._unblock(), name="abe-redis-unblock")

    async def _unblock(self) -> None:
        try:
            while self._waits:
                await self._control.call("CLIENT", "UNBLOCK", self._client)
                if self._waits:
                    await asyncio.sleep(UNBLOCK_PAUSE)
        except AbeError:
            # The broker is away, or will not let us: the read ends by itself, or with its socket.
            if self._waits:
                await self._link.aclose()
        finally:
            self._waker = None

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[SettleFailure]:
        """Tell Redis; deliveries that others own by now are reported lost."""
        try:
            lost = await self._settle(settlements)
        except ConnectionLostError:
            # Redis may have done it and only the answer is missing; the next try then finds that
            # these are nobody's, which is no loss.
            self._doubtful.update(s.delivery.receipt for s in settlements)
            raise
        if self._doubtful:
            receipts = {s.delivery.receipt for s in settlements}
            lost -= self._doubtful
            self._doubtful -= receipts
        if not lost:
            return ()
        return [SettleFailure(s) for s in settlements if s.delivery.receipt in lost]

    async def _settle(self, settlements: Sequence[Settlement]) -> set[Receipt]:
        """Return the receipts of what is not ours any more."""
        # After a reconnection there may be several consumers: receipts keep the name they got.
        acks: dict[tuple[str, int, int], dict[str | None, list[str]]] = {}
        others: list[Settlement] = []
        for settlement in settlements:
            if settlement.outcome is not Outcome.ACK:
                others.append(settlement)
                continue
            delivery = settlement.delivery
            consumer, entry, attempt, epoch = delivery.receipt
            holder, key = (consumer, attempt, epoch), delivery.message.key
            try:
                acks[holder][key].append(entry)
            except KeyError:
                acks.setdefault(holder, {})[key] = [entry]
        lost: set[Receipt] = set()
        try:
            for (consumer, attempt, epoch), by_key in acks.items():
                lost |= await self._ack(consumer, attempt, epoch, by_key)
            if others:
                lost |= await self._give_back(others)
        except GroupMissingError:
            return {settlement.delivery.receipt for settlement in settlements}
        return lost

    async def _ack(
        self, consumer: str, attempt: int, epoch: int, by_key: Mapping[str | None, Sequence[str]]
    ) -> set[Receipt]:
        flat: list[str | int] = []
        for key, entries in by_key.items():
            flat += (key or "", len(entries), *entries)
        lost = await self._control.run(
            scripts.ACK, self._group, consumer, attempt, epoch, self._keep, *flat
        )
        return {(consumer, id_.decode(), attempt, epoch) for id_ in lost}

    async def _give_back(self, settlements: Sequence[Settlement]) -> set[Receipt]:
        flat: list[str | int] = []
        for delivery, outcome, delay, reason in settlements:
            message, receipt = delivery.message, delivery.receipt
            headers = ""
            if outcome is Outcome.REJECT:
                own = dead_headers(
                    {}, reason=reason, attempts=receipt[2], id=message.id, key=message.key
                )
                headers = json.dumps(own, ensure_ascii=False)
            flat += (*receipt[:3], message.key or "", outcome, int(delay * 1000 + 0.999), headers)
        lost = await self._control.run(scripts.BACK, self._group, self._keep, *flat)
        return {settlements[position].delivery.receipt for position in lost}

    async def extend(self, deliveries: Sequence[Delivery], seconds: float) -> Sequence[Delivery]:
        """Let the leases of ``deliveries`` end ``seconds`` from now; return those already lost."""
        begun = max(0, int(((self.lease or seconds) - seconds) * 1000))
        flat = [part for delivery in deliveries for part in delivery.receipt[:3]]
        try:
            lost = await self._control.run(scripts.EXTEND, self._group, begun, *flat)
        except GroupMissingError:
            return deliveries
        return [deliveries[position] for position in lost]

    async def aclose(self) -> None:
        """Disconnect; what is still held stays so until its lease lapses."""
        self._woken = True
        if self._waker is not None:
            await asyncio.wait([self._waker])
        if self._link.connected:
            with suppress(AbeError, GroupMissingError):
                await self._link.run(scripts.CLOSE, self._group, self._name)
        await self._link.aclose(for_good=True)
