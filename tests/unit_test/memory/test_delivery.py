"""Who receives a message and when, beyond the contract: views, leases, order and wake-ups."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from abe.backends.message_queue.base import Delivery, Outcome
from abe.backends.message_queue.service.memory import MemoryBackend
from tests.unit_test.memory.support import (
    LEASE,
    NACK,
    REJECT,
    RELEASE,
    driver,
    ns,
    pass_time,
    publish,
    remembers,
    until,
    waiting,
    waits,
)


async def test_a_message_goes_once_every_existing_group_has_settled_it(
    backend: MemoryBackend,
) -> None:
    a, b = await driver(backend, "a"), await driver(backend, "b")
    await publish(backend, 1, 2, 3)
    first, second, third = await a.take()
    await a.settle(first)
    await a.settle(second, outcome=REJECT)
    assert ns(await backend.peek(group="later")) == [1, 2, 3]
    one, *_ = await b.take()
    await b.settle(one)
    assert ns(await backend.peek(group="later")) == [2, 3]
    assert ns(await (await driver(backend, "later")).drain()) == [2, 3]
    await a.settle(third, outcome=NACK)
    assert ns(await backend.peek(group="a")) == [3]
    pass_time(backend, LEASE)
    assert ns(await a.drain()) == [3]
    assert ns(await b.drain()) == [2, 3]
    assert remembers(backend) == 0


async def test_overlapping_filters_never_hand_out_a_message_twice(backend: MemoryBackend) -> None:
    drivers = [await driver(backend, None, keys) for keys in (None, "a.*", "a.**", ["a.1"])]
    await backend.publish_many((f"a.{n % 3}", {"n": n}) for n in range(60))
    turns = itertools.cycle(drivers)
    taken: list[Delivery] = []
    while await backend.peek():
        taken += await next(turns).take(1)
    assert sorted(ns([d.message for d in taken])) == list(range(60))
    # What comes back through one view is in order in all of them.
    for delivery in taken[::2]:
        await drivers[0].settle(delivery, outcome=RELEASE)
    back = sorted(d.message["n"] for d in taken[::2] if d.message.key == "a.1")
    assert ns(await drivers[3].payloads()) == back


async def test_a_view_forgets_what_others_took_and_stays_small(backend: MemoryBackend) -> None:
    idle = await driver(backend, None, "k")
    busy = await driver(backend)
    for n in range(50):
        await backend.publish_many(({"n": n} for n in range(100)), key="k")
        await busy.drain()
    view = idle.receiver._view  # type: ignore[attr-defined]
    assert len(view.fresh) + len(view.returned) < 2000
    await publish(backend, 7)
    delivery = await busy.one()
    for _ in range(3000):
        await busy.settle(delivery, outcome=RELEASE)
        delivery = await busy.one()
    assert len(view.fresh) + len(view.returned) < 2000
    assert await idle.take() == []
    await busy.settle(delivery, outcome=RELEASE)
    assert ns(await idle.payloads()) == [7]


async def test_a_closed_consumer_leaves_no_view_behind(backend: MemoryBackend) -> None:
    one, two = await driver(backend, "g", "a"), await driver(backend, "g", "a")
    group = backend._store._groups["g"]
    await one.receiver.aclose()
    await one.receiver.aclose()
    assert list(group.views) == [("a",)]
    await two.receiver.aclose()
    assert group.views == {}


@pytest.mark.parametrize("prefetch", [None, 10_000])
async def test_no_consumer_holds_more_than_there_is_use_for(
    backend: MemoryBackend, prefetch: int | None
) -> None:
    """Asking the store costs next to nothing, so what one does not need stays with the others."""
    await publish(backend, *range(2000))
    held = []
    async with backend.consume(prefetch=prefetch) as stream:
        for _ in range(1500):
            await anext(stream)
            held.append(len(stream.subscription.buffer))
    assert max(held) <= MemoryBackend.max_prefetch
    assert max(held) > MemoryBackend.max_prefetch // 2


async def test_a_lapsed_lease_redelivers_and_its_settlement_is_lost(backend: MemoryBackend) -> None:
    await publish(backend, 1)
    slow, quick = await driver(backend), await driver(backend)
    late = await slow.one()
    pass_time(backend, LEASE - 1)
    assert await quick.take() == []
    pass_time(backend, 1)
    assert len(await slow.settle(late)) == 1
    again = await quick.one()
    assert again.message.attempt == 2
    for outcome in Outcome:
        if outcome is not Outcome.LOST:
            (failure,) = await slow.settle(late, outcome=outcome)
            assert failure.error is None
            assert failure.settlement.delivery is late
    assert await slow.receiver.extend([late], LEASE) == [late]
    assert not await quick.settle(again)
    assert len(await quick.settle(again, outcome=REJECT)) == 1
    pass_time(backend, 10 * LEASE)
    assert await quick.take() == []
    assert await backend.dead_letters() == []


async def test_extending_keeps_a_message_and_shortening_gives_it_back_sooner(
    backend: MemoryBackend,
) -> None:
    await publish(backend, 1, 2)
    consumer, other = await driver(backend), await driver(backend)
    first, second = await consumer.take()
    pass_time(backend, LEASE - 1)
    assert await consumer.receiver.extend([first], LEASE) == []
    pass_time(backend, 1)
    assert ns(await other.payloads()) == [2]
    assert await consumer.receiver.extend([second, first], LEASE) == [second]
    async with waiting(other.receiver) as task:
        assert await consumer.receiver.extend([first], 0.001) == []
        (delivery,) = await task
    assert delivery.message == {"n": 1}
    assert delivery.message.attempt == 2


async def test_a_delayed_message_is_delivered_after_the_delay_to_every_group_old_or_new(
    backend: MemoryBackend,
) -> None:
    early = await driver(backend, "early")
    await backend.publish("k", {"n": 1}, delay=10)
    await publish(backend, 2)
    late = await driver(backend, "late")
    for each in (early, late):
        assert ns(await each.drain()) == [2]
    pass_time(backend, 9.9)
    assert await backend.peek(group="nobody") == []
    assert await early.take() == []
    pass_time(backend, 0.1)
    assert ns(await backend.peek(group="nobody")) == [1]
    last = await driver(backend, "last")
    for each in (early, late, last):
        (delivery,) = await each.take()
        assert delivery.message == {"n": 1}
        assert delivery.message.attempt == 1


@pytest.mark.parametrize("settings", [{"lease": 0.05}])
async def test_a_lease_lapses_in_real_time_and_wakes_who_waits(backend: MemoryBackend) -> None:
    await publish(backend, 1)
    dead, alive = await driver(backend), await driver(backend)
    await dead.one()
    async with waiting(alive.receiver) as task:
        (delivery,) = await task
    assert delivery.message.attempt == 2


async def test_released_messages_come_first_and_in_publish_order(backend: MemoryBackend) -> None:
    await publish(backend, *range(8))
    consumer = await driver(backend)
    taken = await consumer.take(6)
    for index in (4, 1, 5, 2):
        await consumer.settle(taken[index], outcome=RELEASE)
    await publish(backend, 8)
    assert ns(await consumer.payloads(3)) == [1, 2, 4]
    assert ns(await consumer.payloads()) == [5, 6, 7, 8]


async def test_from_the_third_attempt_a_message_is_handed_out_alone(backend: MemoryBackend) -> None:
    await publish(backend, 1, 2, 3, 4)
    consumer = await driver(backend)
    for _ in range(2):
        deliveries = await consumer.take(2)
        assert ns([d.message for d in deliveries]) == [1, 2]
        await consumer.settle(*deliveries, outcome=NACK)
    assert ns(await consumer.payloads()) == [1]
    assert ns(await consumer.payloads()) == [2]
    deliveries = await consumer.take()
    assert ns([d.message for d in deliveries]) == [3, 4]
    for _ in range(2):
        await consumer.settle(deliveries[1], outcome=NACK)
        deliveries[1:] = await consumer.take(1)
    await consumer.settle(*deliveries, outcome=RELEASE)
    assert ns(await consumer.payloads()) == [3]
    assert ns(await consumer.payloads()) == [4]


async def test_publish_wakes_every_group_and_wake_ends_a_wait(backend: MemoryBackend) -> None:
    a, b = await driver(backend, "a"), await driver(backend, "b")
    c = await driver(backend, "c", "other")
    async with (
        waiting(a.receiver) as one,
        waiting(b.receiver) as two,
        waiting(c.receiver) as three,
    ):
        await publish(backend, 1)
        assert ns([d.message for d in await one]) == [1]
        assert ns([d.message for d in await two]) == [1]
        assert not three.done()
        c.receiver.wake()
        assert list(await three) == []
    c.receiver.wake()
    assert list(await c.receiver.receive(1, 60.0)) == []
    await publish(backend, 2, key="other")
    assert ns(await c.payloads()) == [2]
    assert not waits(backend)


async def test_a_message_that_comes_back_wakes_the_groups_other_consumers(
    backend: MemoryBackend,
) -> None:
    one, two = await driver(backend), await driver(backend)
    for outcome in (NACK, RELEASE):
        await publish(backend, 1)
        delivery = await one.one()
        async with waiting(two.receiver) as task:
            await one.settle(delivery, outcome=outcome)
            (again,) = await task
        await two.settle(again)


async def test_a_receive_that_times_out_or_is_cancelled_leaves_no_waiter_behind(
    backend: MemoryBackend,
) -> None:
    consumer = await driver(backend)
    assert await consumer.take() == []
    task = asyncio.create_task(consumer.receiver.receive(1, 60.0))
    await until(lambda: waits(backend))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not waits(backend)
    await publish(backend, 1)
    assert ns(await consumer.payloads()) == [1]
