"""A detached message belongs to its owner."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from abe.backends.message_queue.base import Outcome
from tests.unit_test.stream.support import LEASE

if TYPE_CHECKING:
    from tests.support.scripted_broker import Broker


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
