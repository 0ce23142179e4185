"""A detached message belongs to its owner."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from abe.backends.message_queue.base import Outcome
from tests.unit_test.stream.support import LEASE

if TYPE_CHECKING:
    from tests.support.scripted_broker import Broker


async def test_a_detached_message_is_settled_by_its_owner_alone(broker: Broker) -> None:
    """Asking for more does not ack a detached message; its lease is extended meanwhile."""
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


async def test_a_detached_message_left_unsettled_is_not_released_on_close(broker: Broker) -> None:
    """Its owner may still be at work: the lease lapses, and a late ack says that it is void."""
    broker.publish(1)
    async with broker.stream() as stream:
        message = await anext(stream)
        message.detach()
    assert broker.leased() == [0]
    assert not await message.ack()
    assert message.outcome is Outcome.LOST
    await asyncio.sleep(LEASE)
    assert broker.leased() == []
