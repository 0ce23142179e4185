"""Consumers of a memory store, driven by hand, and a look into the store."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from abe.backends.message_queue.base import (
    Delivery,
    KeyFilter,
    Outcome,
    Receiver,
    SettleFailure,
    Settlement,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from abe.backends.message_queue.service.memory import MemoryBackend

ACK, NACK, RELEASE, REJECT = Outcome.ACK, Outcome.NACK, Outcome.RELEASE, Outcome.REJECT
LEASE = 30.0


class Driver:
    """One consumer, driven by hand: it takes what is there now and never waits."""

    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver

    async def take(self, limit: int = 100) -> list[Delivery]:
        return [*await self.receiver.receive(limit, 0.0)]

    async def payloads(self, limit: int = 100) -> list[dict[str, Any]]:
        return [d.message for d in await self.take(limit)]

    async def one(self) -> Delivery:
        (delivery,) = await self.take(1)
        return delivery

    async def settle(
        self, *deliveries: Delivery, outcome: Outcome = ACK, delay: float = 0.0, reason: str = ""
    ) -> Sequence[SettleFailure]:
        return await self.receiver.settle(
            [Settlement(d, outcome, delay, reason) for d in deliveries]
        )

    async def drain(self) -> list[dict[str, Any]]:
        """Take and ack everything there is."""
        taken: list[dict[str, Any]] = []
        while deliveries := await self.take():
            taken += [d.message for d in deliveries]
            assert not await self.settle(*deliveries)
        return taken


async def driver(
    backend: MemoryBackend, group: str | None = None, keys: Sequence[str] | str | None = None
) -> Driver:
    receiver = backend._receiver(group, KeyFilter(keys))
    await receiver.open()
    return Driver(receiver)


async def until(condition: Callable[[], object]) -> None:
    """Let other tasks run until ``condition`` holds."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - there is no event inside the code under test
            await asyncio.sleep(0)


def pass_time(backend: MemoryBackend, seconds: float) -> None:
    """Let leases and delays lapse."""
    backend._store.advance_time(seconds)


def waits(backend: MemoryBackend) -> int:
    """How many consumers and publishers wait."""
    return len(backend._store._waiting)


def remembers(backend: MemoryBackend) -> int:
    """How many messages are kept, and what is known of them in each group."""
    store = backend._store
    parts = [p for g in store._groups.values() for p in (g.ready, g.leases, g.attempts, g.delayed)]
    return sum(map(len, [store._records, *parts]))


@asynccontextmanager
async def waiting(receiver: Receiver) -> AsyncIterator[asyncio.Task[Sequence[Delivery]]]:
    """A task that waits in ``receive``; it must have ended when the block ends."""
    task = asyncio.create_task(receiver.receive(10, 60.0))
    await until(lambda: receiver._waiting)  # type: ignore[attr-defined]
    yield task
    async with asyncio.timeout(5):
        await asyncio.wait([task])


async def publish(backend: MemoryBackend, *values: int, key: str = "k") -> None:
    for n in values:
        await backend.publish(key, {"n": n})


def ns(messages: Sequence[dict[str, Any]]) -> list[int]:
    return [message["n"] for message in messages]
