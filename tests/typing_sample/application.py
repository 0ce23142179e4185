"""An application that uses the public API; it is type-checked against the installed wheel.

Lines with ``type: ignore`` are mistakes that the checker has to find: an unused ignore is an error.
"""

from __future__ import annotations

from typing import assert_type

import abe
from abe.types import MessageQueueBackendProtocol


class Audit:
    """A handler with state."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    async def handle_event(self, event: abe.Message) -> None:
        """Remember the key; refuse what has none."""
        if event.key is None:
            raise abe.Reject("no key")
        self.seen.append(event.key)


async def bill(message: abe.Message) -> None:
    """Handle asynchronously."""
    if message.attempt > 3:
        raise abe.Retry(delay=1.0)


def note(message: abe.Message) -> None:
    """Handle synchronously, in a worker thread."""
    print(message["id"])


async def service() -> None:
    """Run a consumer on whatever the environment selects."""
    backend = abe.load_backend()
    assert_type(backend, MessageQueueBackendProtocol)
    await backend.publish("orders.created", {"id": 1})
    await backend.publish(1, {})  # type: ignore[arg-type]
    await backend.publish("orders.created", "text")  # type: ignore[arg-type]

    consumer = abe.AsyncLoopConsumer(
        backend,
        group="billing",
        keys=["orders.*"],
        concurrency=2,
        retry=abe.RetryPolicy(max_attempts=3),
    )
    await consumer.run(bill)
    await consumer.run(note)
    await consumer.run(Audit())
    await consumer.shutdown()
    abe.AsyncLoopConsumer("memory")  # type: ignore[arg-type]


async def asynchronous() -> None:
    """Use every extra through the typed view."""
    async with abe.aconnect("memory") as q:
        await q.publish("orders.created", {"id": 1}, headers={"trace": "a"}, delay=0.5)
        await q.publish("orders.created", {"id": 1}, headers={"trace": 1})  # type: ignore[dict-item]
        assert_type(await q.publish_many([("orders.created", {"id": 2})]), int)
        async for message in q.consume(group="billing", keys=["orders.*"]):
            assert_type(message, abe.Message)
            assert_type(message.attempt, int)
            assert_type(await message.ack(), bool)
        await abe.AsyncLoopConsumer(q, group="billing").run(bill)


def synchronous() -> None:
    """Use the facade of scripts and notebooks."""
    with abe.connect("memory", env={"ABE_MEMORY_NAME": "sample"}) as q:
        assert_type(q, abe.SyncBackend)
        q.publish("orders.created", {"id": 1})
        q.publish(key="orders.created")  # type: ignore[call-arg]
        for message in q.take(2, timeout=1.0):
            assert_type(message.key, str | None)
            assert_type(message.ack(), bool)
        for message in q.consume("orders.*", group="billing", limit=1):
            assert_type(message.nack(delay=1.0), bool)
