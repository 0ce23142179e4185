"""The memory backend: every semantic of the contract, without waiting for real time."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from abe.backends.message_queue.base import (
    Delivery,
    KeyFilter,
    Message,
    Outcome,
    Receiver,
    SettleFailure,
    Settlement,
)
from abe.backends.message_queue.service import memory
from abe.backends.message_queue.service.memory import MemoryBackend
from abe.errors import (
    BackendClosedError,
    ConfigurationError,
    InvalidKeyError,
    PayloadError,
    PublishError,
    UnsupportedError,
)
from abe.types import KeyStats, MessageQueueBackendProtocol

ACK, NACK, RELEASE, REJECT = Outcome.ACK, Outcome.NACK, Outcome.RELEASE, Outcome.REJECT
LEASE = 30.0

_names = (f"unit.{n}" for n in itertools.count())


def fresh(**settings: Any) -> MemoryBackend:
    """Return a backend on a store that no other test uses."""
    return MemoryBackend(next(_names), **settings)


def run(main: Callable[[MemoryBackend], Coroutine[Any, Any, None]], **settings: Any) -> None:
    """Run a test with a backend of its own."""

    async def body() -> None:
        async with fresh(**settings) as backend:
            await main(backend)

    asyncio.run(body())


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


@asynccontextmanager
async def waiting(receiver: Receiver) -> AsyncIterator[asyncio.Task[Sequence[Delivery]]]:
    """A task that waits in ``receive``; it must have ended when the block ends."""
    task = asyncio.create_task(receiver.receive(10, 60.0))
    await until(lambda: receiver._waiting)  # type: ignore[attr-defined]
    yield task
    async with asyncio.timeout(5):
        await asyncio.wait([task])


def numbers(entry: KeyStats) -> tuple[str, str | None, int | None, int | None, int | None, Any]:
    return entry.key, entry.group, entry.ready, entry.in_flight, entry.delayed, entry.dead


async def publish(backend: MemoryBackend, *values: int, key: str = "k") -> None:
    for n in values:
        await backend.publish(key, {"n": n})


def ns(messages: Sequence[dict[str, Any]]) -> list[int]:
    return [message["n"] for message in messages]


# -- publishing ------------------------------------------------------------------------------


def test_it_is_a_backend() -> None:
    backend: MessageQueueBackendProtocol = fresh()
    assert isinstance(backend, MessageQueueBackendProtocol)
    assert repr(MemoryBackend("unit.repr")) == "MemoryBackend('unit.repr')"


def test_the_caller_may_change_everything_after_publish_returned() -> None:
    async def main(backend: MemoryBackend) -> None:
        payload: dict[str, Any] = {"a": [1]}
        headers = {"h": "1"}
        await backend.publish("k", payload, headers=headers)
        payload["a"].append(2)
        headers["h"] = "2"
        message = (await (await driver(backend)).one()).message
        assert message == {"a": [1]}
        assert message.headers == {"h": "1"}

    run(main)


def test_a_consumer_cannot_change_what_others_receive() -> None:
    async def main(backend: MemoryBackend) -> None:
        await backend.publish("k", {"a": [1]}, headers={"h": "1"})
        one, two = await driver(backend, "one"), await driver(backend, "two")
        first = await one.one()
        first.message["a"].append(2)
        first.message.headers["x"] = "y"  # type: ignore[index]
        await one.settle(first, outcome=NACK)
        for delivery in (await one.one(), await two.one()):
            assert delivery.message == {"a": [1]}
            assert delivery.message.headers == {"h": "1"}
        (seen,) = await backend.peek(group="three")
        assert seen.headers == {"h": "1"}

    run(main)


def test_what_is_no_key_or_payload_is_refused_before_anything_is_stored() -> None:
    async def main(backend: MemoryBackend) -> None:
        with pytest.raises(InvalidKeyError):
            await backend.publish("a b", {})
        with pytest.raises(PayloadError):
            await backend.publish("k", {"a": {1}})
        with pytest.raises(PayloadError, match="headers"):
            await backend.publish("k", {}, headers={"a": 1})  # type: ignore[dict-item]
        with pytest.raises(ConfigurationError, match="delay is -1; it must be 0 or more seconds"):
            await backend.publish("k", {}, delay=-1)
        with pytest.raises(ConfigurationError):
            await backend.publish("k", {}, delay=float("nan"))
        with pytest.raises(UnsupportedError, match="longest is"):
            await backend.publish("k", {}, delay=400 * 86_400)
        with pytest.raises(PayloadError, match="item 1: payload"):
            await backend.publish_many([("k", {}), ("k", {"a": b""})])
        with pytest.raises(PayloadError, match="item 0 is not a"):
            await backend.publish_many([{"a": 1}])
        with pytest.raises(InvalidKeyError, match="item 1: key ''"):
            await backend.publish_many([("k", {}), ("", {})])
        assert await backend.peek() == []

    run(main)


def test_publish_many_with_pairs_and_with_one_key() -> None:
    async def main(backend: MemoryBackend) -> None:
        assert await backend.publish_many([]) == 0
        assert await backend.publish_many((f"k.{n}", {"n": n}) for n in range(2)) == 2
        assert await backend.publish_many(({"n": n} for n in range(2, 4)), key="all") == 2
        messages = await backend.peek()
        assert [(m.key, m["n"]) for m in messages] == [
            ("k.0", 0),
            ("k.1", 1),
            ("all", 2),
            ("all", 3),
        ]

    run(main)


def test_a_generator_may_reuse_one_dict_for_all_payloads() -> None:
    async def main(backend: MemoryBackend) -> None:
        row: dict[str, Any] = {}

        def rows() -> Any:
            for n in range(3):
                row["n"] = n
                yield row

        await backend.publish_many(rows(), key="k")
        assert ns(await backend.peek()) == [0, 1, 2]

    run(main)


def test_metadata_are_the_same_for_every_group_and_delivery() -> None:
    async def main(backend: MemoryBackend) -> None:
        await publish(backend, 1, 2)
        one, two = await driver(backend, "one"), await driver(backend, "two")
        a, other = await one.take()
        b = await two.one()
        await one.settle(a, outcome=NACK)
        again = await one.one()
        peeked = (await backend.peek(group="new"))[0]
        assert a.message.id == b.message.id == again.message.id == peeked.id
        assert a.message.id != other.message.id
        assert a.message.timestamp == b.message.timestamp == again.message.timestamp
        assert a.message.timestamp is not None
        assert a.message.timestamp.tzinfo is not None
        assert a.message.key == b.message.key == "k"
        assert json.dumps([a.message.headers, peeked.headers]) == "[{}, {}]"

    run(main)


# -- groups and retention --------------------------------------------------------------------


def test_each_group_sees_every_message_and_the_default_group_is_one_like_any_other() -> None:
    async def main(backend: MemoryBackend) -> None:
        drivers = [await driver(backend, group) for group in (None, "a", "b")]
        await publish(backend, 1, 2, 3)
        for each in drivers:
            assert ns(await each.drain()) == [1, 2, 3]
            assert await each.take() == []
        assert await backend.groups() == [None, "a", "b"]

    run(main)


def test_with_no_group_everything_is_retained_and_the_first_group_sees_it() -> None:
    async def main(backend: MemoryBackend) -> None:
        await publish(backend, 1, 2, 3)
        assert await backend.groups() == []
        assert ns(await (await driver(backend, "late")).drain()) == [1, 2, 3]

    run(main)


def test_a_message_goes_once_every_existing_group_has_settled_it() -> None:
    async def main(backend: MemoryBackend) -> None:
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

    run(main)


def test_what_all_groups_have_settled_is_really_gone() -> None:
    async def main(backend: MemoryBackend) -> None:
        await publish(backend, *range(100))
        for group in ("a", "b"):
            await driver(backend, group)
        for group in ("a", "b"):
            consumer = await driver(backend, group)
            await consumer.settle(*await consumer.take(), outcome=NACK)
            await consumer.drain()
        assert backend._store._records == {}
        for kept in backend._store._groups.values():
            assert not any((kept.ready, kept.leases, kept.attempts, kept.delayed))

    run(main)


def test_a_group_exists_from_the_moment_it_is_opened() -> None:
    async def main(backend: MemoryBackend) -> None:
        stream = backend.consume(group="lazy")
        assert await backend.groups() == []
        async with stream:
            assert await backend.groups() == ["lazy"]
        iterated = backend.consume(group="iterated")
        task = asyncio.create_task(anext(iterated))
        await until(lambda: "iterated" in backend._store._groups)
        await publish(backend, 1)
        assert await task == {"n": 1}
        await iterated.aclose()

    run(main)


def test_a_group_keeps_its_backlog_while_nobody_consumes() -> None:
    async def main(backend: MemoryBackend) -> None:
        async with backend.consume(group="g"):
            pass
        await publish(backend, 1)
        async with MemoryBackend(backend.store_name) as other:
            assert ns(await (await driver(other, "g")).drain()) == [1]

    run(main)


def test_stores_are_separate_by_name_and_shared_by_backends_of_one_name() -> None:
    async def main(backend: MemoryBackend) -> None:
        await publish(backend, 1)
        assert await fresh().peek() == []
        assert ns(await MemoryBackend(backend.store_name).peek()) == [1]

    run(main)


# -- key filters -----------------------------------------------------------------------------


def test_unmatched_messages_stay_for_the_groups_other_consumers() -> None:
    async def main(backend: MemoryBackend) -> None:
        for n, key in enumerate(("a.x", "b.x", "a.y", "c", "b.y.z")):
            await publish(backend, n, key=key)
        only_a = await driver(backend, None, "a.*")
        b_and_c = await driver(backend, None, ["b.**", "c"])
        assert ns(await only_a.payloads()) == [0, 2]
        assert await only_a.take() == []
        assert ns(await backend.peek()) == [1, 3, 4]
        assert ns(await b_and_c.payloads()) == [1, 3, 4]
        await publish(backend, 5, key="d")
        assert await only_a.take() == []
        assert await b_and_c.take() == []
        assert ns(await (await driver(backend)).payloads()) == [5]

    run(main)


def test_overlapping_filters_never_hand_out_a_message_twice() -> None:
    async def main(backend: MemoryBackend) -> None:
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

    run(main)


def test_a_view_forgets_what_others_took_and_stays_small() -> None:
    async def main(backend: MemoryBackend) -> None:
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

    run(main)


def test_a_closed_consumer_leaves_no_view_behind() -> None:
    async def main(backend: MemoryBackend) -> None:
        one, two = await driver(backend, "g", "a"), await driver(backend, "g", "a")
        group = backend._store._groups["g"]
        await one.receiver.aclose()
        await one.receiver.aclose()
        assert list(group.views) == [("a",)]
        await two.receiver.aclose()
        assert group.views == {}

    run(main)


# -- competing consumers, redelivery, attempts -----------------------------------------------


def test_a_backend_forgets_streams_that_are_closed() -> None:
    async def main(backend: MemoryBackend) -> None:
        for _ in range(3):
            async with backend.consume():
                assert len(backend._engines) == 1
        assert not backend._engines

    run(main)


@pytest.mark.parametrize("prefetch", [None, 10_000])
def test_no_consumer_holds_more_than_there_is_use_for(prefetch: int | None) -> None:
    """Asking the store costs next to nothing, so what one does not need stays with the others."""

    async def main(backend: MemoryBackend) -> None:
        await publish(backend, *range(2000))
        held = []
        async with backend.consume(prefetch=prefetch) as stream:
            for _ in range(1500):
                await anext(stream)
                held.append(len(stream._engine.buffer))
        assert max(held) <= MemoryBackend.max_prefetch
        assert max(held) > MemoryBackend.max_prefetch // 2

    run(main)


def test_competing_consumers_never_share_a_message() -> None:
    async def main(backend: MemoryBackend) -> None:
        drivers = [await driver(backend, "g") for _ in range(5)]
        await backend.publish_many(({"n": n} for n in range(100)), key="k")
        taken = [n for _ in range(10) for each in drivers for n in ns(await each.payloads(2))]
        assert taken == list(range(100))

    run(main)


@pytest.mark.parametrize(
    ("outcome", "attempt"), [(NACK, 2), (RELEASE, 1)], ids=["nack counts", "release does not"]
)
def test_attempts(outcome: Outcome, attempt: int) -> None:
    async def main(backend: MemoryBackend) -> None:
        await publish(backend, 1)
        consumer = await driver(backend, "g")
        other = await driver(backend, "other")
        delivery = await consumer.one()
        assert delivery.message.attempt == 1
        await consumer.settle(delivery, outcome=outcome)
        (peeked,) = await backend.peek(group="g")
        assert peeked.attempt == attempt
        delivery = await consumer.one()
        assert delivery.message.attempt == attempt
        assert (await other.one()).message.attempt == 1

    run(main)


def test_attempts_add_up_over_every_way_to_end_a_delivery() -> None:
    async def main(backend: MemoryBackend) -> None:
        await publish(backend, 1)
        consumer = await driver(backend)
        seen = []
        for outcome in (RELEASE, NACK, RELEASE, None, RELEASE, NACK, None, RELEASE):
            delivery = await consumer.one()
            seen.append(delivery.message.attempt)
            if outcome is None:
                backend._store.advance_time(LEASE)
            else:
                assert not await consumer.settle(delivery, outcome=outcome)
        assert seen == [1, 1, 2, 2, 3, 3, 4, 5]
        assert (await consumer.one()).message.attempt == 5

    run(main)


def test_a_lapsed_lease_redelivers_and_its_settlement_is_lost() -> None:
    async def main(backend: MemoryBackend) -> None:
        await publish(backend, 1)
        slow, quick = await driver(backend), await driver(backend)
        late = await slow.one()
        backend._store.advance_time(LEASE - 1)
        assert await quick.take() == []
        backend._store.advance_time(1)
        again = await quick.one()
        assert again.message.attempt == 2
        for outcome in Outcome:
            if outcome is not Outcome.LOST:
                (failure,) = await slow.settle(late, outcome=outcome)
                assert failure.error is None
                assert failure.settlement.delivery is late
        assert await slow.receiver.extend([late], LEASE) == [late]
        assert not await quick.settle(again)
        backend._store.advance_time(10 * LEASE)
        assert await quick.take() == []

    run(main)


def test_a_lease_that_lapsed_is_lost_even_before_the_message_is_taken_again() -> None:
    async def main(backend: MemoryBackend) -> None:
        await publish(backend, 1)
        consumer = await driver(backend)
        late = await consumer.one()
        backend._store.advance_time(LEASE)
        assert len(await consumer.settle(late)) == 1
        assert (await consumer.one()).message.attempt == 2

    run(main)


def test_settling_twice_changes_nothing() -> None:
    async def main(backend: MemoryBackend) -> None:
        await publish(backend, 1)
        consumer = await driver(backend)
        delivery = await consumer.one()
        assert not await consumer.settle(delivery)
        assert len(await consumer.settle(delivery, outcome=REJECT)) == 1
        assert await backend.dead_letters() == []

    run(main)


def test_extending_keeps_a_message_and_shortening_gives_it_back_sooner() -> None:
    async def main(backend: MemoryBackend) -> None:
        await publish(backend, 1, 2)
        consumer, other = await driver(backend), await driver(backend)
        first, second = await consumer.take()
        backend._store.advance_time(LEASE - 1)
        assert await consumer.receiver.extend([first], LEASE) == []
        backend._store.advance_time(1)
        assert ns(await other.payloads()) == [2]
        assert await consumer.receiver.extend([second, first], LEASE) == [second]
        async with waiting(other.receiver) as task:
            assert await consumer.receiver.extend([first], 0.001) == []
            (delivery,) = await task
        assert delivery.message == {"n": 1}
        assert delivery.message.attempt == 2

    run(main)


def test_a_nacked_message_comes_back_after_the_delay_and_not_before() -> None:
    async def main(backend: MemoryBackend) -> None:
        await publish(backend, 1, 2)
        consumer = await driver(backend)
        delivery = await consumer.one()
        await consumer.settle(delivery, outcome=NACK, delay=10)
        assert ns(await consumer.drain()) == [2]
        backend._store.advance_time(9.9)
        assert await consumer.take() == []
        backend._store.advance_time(0.1)
        assert (await consumer.one()).message.attempt == 2

    run(main)


def test_a_delayed_message_is_delivered_after_the_delay_to_every_group_old_or_new() -> None:
    async def main(backend: MemoryBackend) -> None:
        early = await driver(backend, "early")
        await backend.publish("k", {"n": 1}, delay=10)
        await publish(backend, 2)
        late = await driver(backend, "late")
        for each in (early, late):
            assert ns(await each.drain()) == [2]
        backend._store.advance_time(9.9)
        assert await backend.peek(group="nobody") == []
        assert await early.take() == []
        backend._store.advance_time(0.1)
        assert ns(await backend.peek(group="nobody")) == [1]
        last = await driver(backend, "last")
        for each in (early, late, last):
            (delivery,) = await each.take()
            assert delivery.message == {"n": 1}
            assert delivery.message.attempt == 1

    run(main)


def test_delays_pass_in_real_time_too_and_wake_who_waits() -> None:
    async def main(backend: MemoryBackend) -> None:
        loop = asyncio.get_running_loop()
        async with backend.consume() as stream:
            started = loop.time()
            await backend.publish("k", {"n": 1}, delay=0.05)
            message = await anext(stream)
            assert loop.time() - started >= 0.05
            await message.nack(0.05)
            nacked = loop.time()
            assert (await anext(stream)).attempt == 2
            assert loop.time() - nacked >= 0.05

    run(main)


def test_a_lease_lapses_in_real_time_and_wakes_who_waits() -> None:
    async def main(backend: MemoryBackend) -> None:
        await publish(backend, 1)
        dead, alive = await driver(backend), await driver(backend)
        await dead.one()
        async with waiting(alive.receiver) as task:
            (delivery,) = await task
        assert delivery.message.attempt == 2

    run(main, lease=0.05)


def test_released_messages_come_first_and_in_publish_order() -> None:
    async def main(backend: MemoryBackend) -> None:
        await publish(backend, *range(8))
        consumer = await driver(backend)
        taken = await consumer.take(6)
        for index in (4, 1, 5, 2):
            await consumer.settle(taken[index], outcome=RELEASE)
        assert ns(await consumer.payloads(3)) == [1, 2, 4]
        assert ns(await consumer.payloads()) == [5, 6, 7]

    run(main)


def test_publish_order_is_kept_for_each_consumer_whatever_comes_back_between() -> None:
    async def main(backend: MemoryBackend) -> None:
        consumer = await driver(backend)
        await publish(backend, 1)
        first = await consumer.one()
        await publish(backend, 2, 3)
        await consumer.settle(first, outcome=RELEASE)
        await publish(backend, 4)
        assert ns(await consumer.payloads()) == [1, 2, 3, 4]

    run(main)


def test_from_the_third_attempt_a_message_is_handed_out_alone() -> None:
    async def main(backend: MemoryBackend) -> None:
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

    run(main)


# -- waiting ---------------------------------------------------------------------------------


def test_publish_wakes_every_group_and_wake_ends_a_wait() -> None:
    async def main(backend: MemoryBackend) -> None:
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
        assert backend._store._waiting == {}

    run(main)


def test_a_message_that_comes_back_wakes_the_groups_other_consumers() -> None:
    async def main(backend: MemoryBackend) -> None:
        one, two = await driver(backend), await driver(backend)
        for outcome in (NACK, RELEASE):
            await publish(backend, 1)
            delivery = await one.one()
            async with waiting(two.receiver) as task:
                await one.settle(delivery, outcome=outcome)
                (again,) = await task
            await two.settle(again)

    run(main)


def test_a_receive_that_times_out_or_is_cancelled_leaves_no_waiter_behind() -> None:
    async def main(backend: MemoryBackend) -> None:
        consumer = await driver(backend)
        assert await consumer.take() == []
        task = asyncio.create_task(consumer.receiver.receive(1, 60.0))
        await until(lambda: backend._store._waiting)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert backend._store._waiting == {}
        await publish(backend, 1)
        assert ns(await consumer.payloads()) == [1]

    run(main)


# -- dead letters ----------------------------------------------------------------------------


def test_a_rejected_message_is_a_dead_letter_of_its_group_and_never_delivered() -> None:
    async def main(backend: MemoryBackend) -> None:
        await backend.publish("k", {"n": 1}, headers={"trace": "t"})
        a, b = await driver(backend, "a"), await driver(backend, "b")
        delivery = await a.one()
        await a.settle(delivery, outcome=NACK)
        await a.settle(await a.one(), outcome=REJECT, reason="no good\nline 2\nline 3")
        backend._store.advance_time(1000 * LEASE)
        assert await a.take() == []
        assert await backend.peek(group="a") == []
        (dead,) = await backend.dead_letters(group="a")
        assert isinstance(dead, Message)
        assert (dead, dead.id, dead.key, dead.attempt) == ({"n": 1}, delivery.message.id, "k", 2)
        moment = float(dead.headers["abe-dead-time"])
        assert dead.timestamp is not None
        assert moment >= dead.timestamp.timestamp()
        assert dead.headers == {
            "trace": "t",
            "abe-dead-reason": "no good",
            "abe-dead-traceback": "line 2\nline 3",
            "abe-dead-attempts": "2",
            "abe-dead-time": dead.headers["abe-dead-time"],
            "abe-dead-id": dead.id,
            "abe-dead-key": "k",
        }
        assert await backend.dead_letters(group="b") == []
        assert await backend.dead_letters() == []
        assert await backend.dead_letters(group="unknown") == []
        assert (await b.one()).message.headers == {"trace": "t"}
        with pytest.raises(UnsupportedError):
            await dead.ack()

    run(main)


def test_dead_letters_are_listed_oldest_first_up_to_a_limit() -> None:
    async def main(backend: MemoryBackend) -> None:
        await publish(backend, *range(5))
        consumer = await driver(backend)
        await consumer.settle(*await consumer.take(), outcome=REJECT)
        assert ns(await backend.dead_letters(limit=3)) == [0, 1, 2]
        assert await backend.dead_letters(limit=0) == []
        assert await backend.dead_letters(limit=-1) == []

    run(main)


def test_replay_reaches_only_that_group_and_counts_from_the_start() -> None:
    async def main(backend: MemoryBackend) -> None:
        await backend.publish("k", {"n": 1}, headers={"trace": "t"})
        a, b = await driver(backend, "a"), await driver(backend, "b")
        for _ in range(3):
            await a.settle(await a.one(), outcome=NACK)
        delivery = await a.one()
        await a.settle(delivery, outcome=REJECT, reason="x")
        await b.drain()
        assert await backend.replay(group="b") == 0
        async with waiting(a.receiver) as task:
            assert await backend.replay(group="a") == 1
            (again,) = await task
        assert await backend.dead_letters(group="a") == []
        assert again.message == {"n": 1}
        assert again.message.attempt == 1
        assert again.message.id == delivery.message.id
        assert again.message.headers == {"trace": "t"}
        assert await b.take() == []
        assert await (await driver(backend, "new")).take() == []
        await a.settle(again, outcome=NACK)
        assert (await a.one()).message.attempt == 2

    run(main)


def test_a_replayed_message_goes_once_settled_and_can_die_again() -> None:
    async def main(backend: MemoryBackend) -> None:
        await publish(backend, 1, 2)
        a, b = await driver(backend, "a"), await driver(backend, "b")
        await a.settle(*await a.take(), outcome=REJECT)
        assert await backend.replay(group="a") == 2
        await a.settle(await a.one(), outcome=REJECT, reason="again")
        assert ns(await backend.dead_letters(group="a")) == [1]
        assert ns(await a.drain()) == [2]
        assert ns(await backend.peek(group="new")) == [1, 2]  # b has not settled them
        assert ns(await b.drain()) == [1, 2]
        assert await backend.peek(group="new") == []
        assert backend._store._records == {}
        assert await backend.replay(group="a") == 1
        assert ns(await a.drain()) == [1]
        assert backend._store._records == {}

    run(main)


def test_replay_by_id_and_limit() -> None:
    async def main(backend: MemoryBackend) -> None:
        await publish(backend, *range(6))
        consumer = await driver(backend)
        deliveries = await consumer.take()
        await consumer.settle(*deliveries, outcome=REJECT)
        ids = [d.message.id or "" for d in deliveries]
        assert await backend.replay(ids=[]) == 0
        assert await backend.replay(ids=["unknown"]) == 0
        assert await backend.replay(limit=0) == 0
        assert await backend.replay(limit=-1) == 0
        assert await backend.replay(ids=ids[3]) == 1
        assert await backend.replay(ids=(ids[5], ids[4])) == 2
        assert await backend.replay(limit=2) == 2
        assert ns(await consumer.drain()) == [0, 1, 3, 4, 5]
        assert await backend.replay() == 1
        assert await backend.replay(group="unknown") == 0

    run(main)


# -- looking and cleaning up -----------------------------------------------------------------


def test_peek_takes_nothing() -> None:
    async def main(backend: MemoryBackend) -> None:
        await publish(backend, *range(20))
        for _ in range(2):
            assert ns(await backend.peek(group="g")) == list(range(10))
            assert ns(await backend.peek(group="g", limit=3)) == [0, 1, 2]
            assert await backend.peek(group="g", limit=0) == []
            assert await backend.peek(group="g", limit=-5) == []
        assert await backend.groups() == []
        consumer = await driver(backend, "g")
        first = await consumer.one()
        assert ns(await backend.peek(group="g", limit=1)) == [1]
        await consumer.settle(first, outcome=NACK, delay=5)
        assert ns(await backend.peek(group="g", limit=1)) == [1]
        backend._store.advance_time(5)
        (seen,) = await backend.peek(group="g", limit=1)
        assert (seen["n"], seen.attempt) == (0, 2)
        assert len(await backend.peek(group="g", limit=100)) == 20
        (delivery, *_) = await consumer.take(1)
        assert delivery.message.attempt == 2
        with pytest.raises(UnsupportedError):
            await seen.ack()

    run(main)


def test_peek_by_keys() -> None:
    async def main(backend: MemoryBackend) -> None:
        for n, key in enumerate(("a.x", "b", "a.y")):
            await publish(backend, n, key=key)
        assert ns(await backend.peek("a.*")) == [0, 2]
        assert ns(await backend.peek(["b", "a.y"], limit=1)) == [1]
        with pytest.raises(InvalidKeyError):
            await backend.peek("a.**.b")
        with pytest.raises(InvalidKeyError):
            await backend.peek(group="a b")

    run(main)


def test_stats() -> None:
    async def main(backend: MemoryBackend) -> None:
        assert (await backend.stats()).entries == ()
        for n, key in enumerate(("a", "a", "b", "a", "a")):
            await publish(backend, n, key=key)
        await backend.publish("b", {"n": 5}, delay=10)
        stats = await backend.stats()
        assert not stats.approximate
        assert [*map(numbers, stats.entries)] == [
            ("a", None, 4, 0, 0, 0),
            ("b", None, 1, 0, 1, 0),
        ]
        consumer = await driver(backend, "g")
        one, two, _, three, _ = await consumer.take()
        await consumer.settle(one, outcome=REJECT)
        await consumer.settle(two, outcome=NACK, delay=10)
        await consumer.settle(three, outcome=RELEASE)
        stats = await backend.stats()
        assert [*map(numbers, stats.entries)] == [("a", "g", 1, 1, 1, 1), ("b", "g", 0, 1, 1, 0)]
        assert stats.total("in_flight", group="g") == 2
        assert stats.total("in_flight") == 0
        backend._store.advance_time(LEASE)
        stats = await backend.stats()
        assert [*map(numbers, stats.entries)] == [("a", "g", 3, 0, 0, 1), ("b", "g", 2, 0, 0, 0)]
        for entry in stats.entries:
            assert entry.oldest_age is not None
            assert 0 <= entry.oldest_age < 10

    run(main)


def test_the_oldest_age_leaves_dead_letters_out(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(backend: MemoryBackend) -> None:
        moments = iter((100.0, 160.0))
        with monkeypatch.context() as patch:
            patch.setattr("time.time", lambda: next(moments))
            await publish(backend, 1, 2)
        consumer = await driver(backend)
        ages = []
        for _ in range(3):
            with monkeypatch.context() as patch:
                patch.setattr("time.time", lambda: 200.0)
                (entry,) = (await backend.stats()).entries
            ages.append(entry.oldest_age)
            if len(ages) < 3:
                await consumer.settle(await consumer.one(), outcome=REJECT)
        assert ages == [100.0, 40.0, None]

    run(main)


def test_purge_drops_what_waits_and_not_what_is_in_flight_or_dead() -> None:
    async def main(backend: MemoryBackend) -> None:
        consumer, other = await driver(backend, "g"), await driver(backend, "other")
        await publish(backend, *range(6))
        await backend.publish("k", {"n": 6}, delay=10)
        held, dead, late, *rest = await consumer.take()
        await consumer.settle(dead, outcome=REJECT)
        await consumer.settle(late, outcome=NACK, delay=10)
        await consumer.settle(*rest, outcome=RELEASE)
        assert await backend.purge(group="g") == 5
        assert await backend.purge(group="g") == 0
        backend._store.advance_time(11)
        assert await consumer.take() == []
        assert not await consumer.settle(held)
        assert ns(await backend.dead_letters(group="g")) == [1]
        assert ns(await other.drain()) == list(range(7))
        assert backend._store._records == {}
        assert await backend.purge(group="unknown") == 0

    run(main)


def test_purge_counts_a_lapsed_lease_as_waiting() -> None:
    async def main(backend: MemoryBackend) -> None:
        consumer = await driver(backend)
        await publish(backend, 1)
        await consumer.one()
        assert await backend.purge() == 0
        backend._store.advance_time(LEASE)
        assert await backend.purge() == 1
        assert await consumer.take() == []

    run(main)


def test_purge_by_keys_and_before_any_group_exists() -> None:
    async def main(backend: MemoryBackend) -> None:
        for n, key in enumerate(("a.x", "b", "a.y")):
            await publish(backend, n, key=key)
        await backend.publish("b", {"n": 3}, delay=5)
        assert await backend.purge("b") == 2
        assert ns(await backend.peek()) == [0, 2]
        consumer = await driver(backend)
        await publish(backend, 4, key="b")
        await backend.publish("b", {"n": 5}, delay=5)
        await backend.publish("a.z", {"n": 6}, delay=5)
        assert await backend.purge(["b"]) == 2
        backend._store.advance_time(5)
        assert ns(await consumer.drain()) == [0, 2, 6]
        assert await backend.purge() == 0

    run(main)


def test_purged_messages_keep_no_attempts() -> None:
    async def main(backend: MemoryBackend) -> None:
        await publish(backend, 1)
        consumer = await driver(backend)
        await consumer.settle(await consumer.one(), outcome=NACK)
        await backend.purge()
        assert backend._store._groups[None].attempts == {}

    run(main)


def test_delete_group_forgets_backlog_and_dead_letters() -> None:
    async def main(backend: MemoryBackend) -> None:
        a, b = await driver(backend, "a"), await driver(backend, "b")
        await publish(backend, 1, 2, 3)
        held, dead, _ = await a.take()
        await a.settle(dead, outcome=REJECT)
        assert ns(await b.drain()) == [1, 2, 3]
        await backend.delete_group("a")
        assert await backend.groups() == ["b"]
        assert await backend.dead_letters(group="a") == []
        assert backend._store._records == {}
        assert len(await a.settle(held)) == 1
        assert await a.receiver.extend([held], 1.0) == [held]
        await publish(backend, 4)
        assert ns(await (await driver(backend, "a")).drain()) == [4]
        with pytest.raises(ConfigurationError, match="there is no group 'c'"):
            await backend.delete_group("c")
        with pytest.raises(ConfigurationError, match="there is no group None"):
            await backend.delete_group(None)

    run(main)


def test_an_open_stream_of_a_deleted_group_fails_clearly_waiting_or_not() -> None:
    text = "group 'g' was deleted while this stream was open; open a new stream"

    async def main(backend: MemoryBackend) -> None:
        await publish(backend, 1)
        idle, other = await driver(backend, "g"), await driver(backend, "g", "nothing")
        stream = backend.consume(group="g", keys="nothing.else")
        async with waiting(other.receiver) as receiving:
            waiter = asyncio.create_task(anext(stream))
            await until(lambda: len(backend._store._waiting) == 2)
            await backend.delete_group("g")
            for failing in (receiving, waiter):
                with pytest.raises(ConfigurationError, match=text):
                    await failing
        with pytest.raises(ConfigurationError, match=text):
            await idle.take()
        await idle.receiver.aclose()

    run(main)


# -- the bound -------------------------------------------------------------------------------


def test_at_the_bound_publish_waits_and_then_names_the_slowest_group() -> None:
    async def main(backend: MemoryBackend) -> None:
        quick, slow = await driver(backend, "quick"), await driver(backend, "slow")
        await publish(backend, 1, 2)
        await quick.drain()
        with pytest.raises(PublishError) as caught:
            await backend.publish("k", {"n": 3})
        assert str(caught.value) == (
            f"memory store {backend.store_name!r} is full (2 messages) and had no room for 0.01 s; "
            "the slowest group is 'slow' with 2 messages unsettled"
        )
        assert caught.value.retryable
        assert list(caught.value.published) == []
        assert caught.value.failed == {0: "the store is full"}
        assert ns(await slow.drain()) == [1, 2]
        assert await quick.take() == []
        await backend.publish("k", {"n": 4})

    run(main, maxsize=2, publish_timeout=0.01)


def test_at_the_bound_without_a_group() -> None:
    async def main(backend: MemoryBackend) -> None:
        await publish(backend, 1)
        with pytest.raises(PublishError, match="no group consumes from it"):
            await publish(backend, 2)

    run(main, maxsize=1, publish_timeout=0.0)


@pytest.mark.parametrize("outcome", [ACK, REJECT])
def test_a_waiting_publish_goes_on_as_soon_as_there_is_room(outcome: Outcome) -> None:
    async def main(backend: MemoryBackend) -> None:
        consumer = await driver(backend)
        await publish(backend, 1)
        task = asyncio.create_task(backend.publish("k", {"n": 2}))
        await until(lambda: backend._store._waiting)
        await consumer.settle(await consumer.one(), outcome=outcome)
        async with asyncio.timeout(5):
            await task
        assert ns(await consumer.payloads()) == [2]
        assert backend._store._waiting == {}

    run(main, maxsize=1)


@pytest.mark.parametrize("how", ["purge", "delete_group"])
def test_cleaning_up_makes_room(how: str) -> None:
    async def main(backend: MemoryBackend) -> None:
        await driver(backend)
        await publish(backend, 1)
        task = asyncio.create_task(backend.publish("k", {"n": 2}))
        await until(lambda: backend._store._waiting)
        await (backend.purge() if how == "purge" else backend.delete_group(None))
        async with asyncio.timeout(5):
            await task
        assert ns(await backend.peek()) == [2]

    run(main, maxsize=1)


def test_many_waiting_publishers_all_get_through_and_the_bound_holds() -> None:
    async def main(backend: MemoryBackend) -> None:
        consumer = await driver(backend)
        received: list[int] = []
        async with asyncio.TaskGroup() as group:
            for n in range(50):
                group.create_task(backend.publish("k", {"n": n}))
            while len(received) < 50:
                deliveries = [*await consumer.receiver.receive(10, 5.0)]
                assert len(backend._store._records) <= 3
                received += ns([d.message for d in deliveries])
                await consumer.settle(*deliveries)
        assert sorted(received) == list(range(50))
        assert backend._store._waiting == {}

    run(main, maxsize=3)


def test_publish_many_says_exactly_what_was_published() -> None:
    async def main(backend: MemoryBackend) -> None:
        consumer = await driver(backend)
        await publish(backend, 100)
        with pytest.raises(PublishError) as caught:
            await backend.publish_many([{"n": n} for n in range(5)], key="k")
        error = caught.value
        assert list(error.published) == [0, 1]
        assert error.failed == dict.fromkeys([2, 3, 4], "the store is full")
        assert ns(await consumer.drain()) == [100, 0, 1]

    run(main, maxsize=3, publish_timeout=0.01)


def test_publish_many_larger_than_the_bound_flows_through() -> None:
    async def main(backend: MemoryBackend) -> None:
        consumer = await driver(backend)
        task = asyncio.create_task(backend.publish_many([{"n": n} for n in range(50)], key="k"))
        received: list[int] = []
        while len(received) < 50:
            deliveries = [*await consumer.receiver.receive(10, 5.0)]
            received += ns([d.message for d in deliveries])
            await consumer.settle(*deliveries)
        assert await task == 50
        assert received == list(range(50))

    run(main, maxsize=4)


def test_a_cancelled_publish_leaves_no_waiter_and_publishes_nothing() -> None:
    async def main(backend: MemoryBackend) -> None:
        consumer = await driver(backend)
        await publish(backend, 1)
        task = asyncio.create_task(backend.publish("k", {"n": 2}))
        await until(lambda: backend._store._waiting)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert backend._store._waiting == {}
        assert ns(await consumer.drain()) == [1]
        assert await consumer.take() == []

    run(main, maxsize=1)


def test_closing_ends_a_publish_that_waits_for_room() -> None:
    async def main(backend: MemoryBackend) -> None:
        await publish(backend, 1)
        task = asyncio.create_task(backend.publish_many([{"n": 2}, {"n": 3}], key="k"))
        await until(lambda: backend._store._waiting)
        await backend.aclose()
        with pytest.raises(PublishError, match="the backend was closed while") as caught:
            await task
        assert not caught.value.retryable
        assert caught.value.failed == dict.fromkeys([0, 1], "the backend was closed")

    run(main, maxsize=1)


def test_a_backend_closed_by_another_thread_does_not_begin_to_wait() -> None:
    async def main(backend: MemoryBackend) -> None:
        await publish(backend, 1)
        backend._closed = True  # between two steps of publish()
        assert not await backend._room(asyncio.get_running_loop().time() + 1000)
        backend._closed = False

    run(main, maxsize=1)


# -- life ------------------------------------------------------------------------------------


def test_a_closed_backend_refuses_everything_and_closing_twice_is_fine() -> None:
    async def main(backend: MemoryBackend) -> None:
        await publish(backend, 1)
        await backend.ping()
        await backend.aclose()
        await backend.aclose()
        with pytest.raises(BackendClosedError, match="backend 'memory' is closed"):
            backend.consume()
        calls: list[Coroutine[Any, Any, object]] = [
            backend.publish("k", {}),
            backend.publish_many([], key="k"),
            backend.peek(),
            backend.stats(),
            backend.dead_letters(),
            backend.replay(),
            backend.groups(),
            backend.delete_group("g"),
            backend.purge(),
            backend.ping(),
            backend.__aenter__(),
        ]
        for call in calls:
            with pytest.raises(BackendClosedError, match="is closed; open a new one"):
                await call
        assert ns(await MemoryBackend(backend.store_name).peek()) == [1]

    run(main)


def test_closing_gives_back_what_its_streams_hold() -> None:
    async def main(backend: MemoryBackend) -> None:
        await publish(backend, 1, 2, 3)
        stream = backend.consume(group="g")
        assert await anext(stream) == {"n": 1}
        await backend.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        other = MemoryBackend(backend.store_name)
        consumer = await driver(other, "g")
        deliveries = await consumer.take()
        assert [(d.message["n"], d.message.attempt) for d in deliveries] == [(1, 1), (2, 1), (3, 1)]

    run(main)


def test_the_environment_configures_it_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for variable in ("NAME", "MAXSIZE", "PUBLISH_TIMEOUT", "LEASE"):
        monkeypatch.setenv(f"ABE_MEMORY_{variable}", "")
    monkeypatch.delitem(memory._stores, "default", raising=False)
    default = MemoryBackend.from_env()
    assert (default.store_name, default._maxsize, default._publish_timeout) == (
        "default",
        float("inf"),
        30.0,
    )
    assert default.capabilities.lease == 30.0
    assert [(r.levelno, r.getMessage()) for r in caplog.records] == [
        (
            logging.WARNING,
            "backend memory keeps messages in this process only: for development",
        )
    ]
    monkeypatch.setenv("ABE_MEMORY_NAME", "unit.env")
    monkeypatch.setenv("ABE_MEMORY_MAXSIZE", "7")
    monkeypatch.setenv("ABE_MEMORY_PUBLISH_TIMEOUT", "0.5")
    monkeypatch.setenv("ABE_MEMORY_LEASE", "2")
    configured = MemoryBackend.from_env()
    assert (configured.store_name, configured._maxsize, configured._publish_timeout) == (
        "unit.env",
        7,
        0.5,
    )
    assert configured.capabilities.lease == 2.0


def test_it_warns_once_for_each_store(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("unit.warned", "unit.warned", "unit.warned.too", "unit.warned"):
        monkeypatch.setenv("ABE_MEMORY_NAME", name)
        MemoryBackend.from_env()
    assert len(caplog.records) == 2


@pytest.mark.parametrize(
    ("variable", "value", "text"),
    [
        ("MAXSIZE", "many", "ABE_MEMORY_MAXSIZE is 'many'; it must be a whole number, 1 or more"),
        ("MAXSIZE", "0", "ABE_MEMORY_MAXSIZE is '0'; it must be a whole number, 1 or more"),
        ("MAXSIZE", "1.5", "ABE_MEMORY_MAXSIZE is '1.5'; it must be a whole number, 1 or more"),
        ("MAXSIZE", "inf", "ABE_MEMORY_MAXSIZE is 'inf'; it must be a whole number, 1 or more"),
        (
            "PUBLISH_TIMEOUT",
            "-1",
            "ABE_MEMORY_PUBLISH_TIMEOUT is '-1'; it must be a number, 0 s or more",
        ),
        (
            "PUBLISH_TIMEOUT",
            "nan",
            "ABE_MEMORY_PUBLISH_TIMEOUT is 'nan'; it must be a number, 0 s or more",
        ),
        ("LEASE", "0", "ABE_MEMORY_LEASE is '0'; it must be a number, 0.001 s or more"),
        (
            "NAME",
            "a b",
            "ABE_MEMORY_NAME is 'a b'; it must be a key: key 'a b' contains ' ', "
            "which keys and groups may not",
        ),
    ],
)
def test_a_malformed_variable_is_named(
    variable: str, value: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"ABE_MEMORY_{variable}", value)
    with pytest.raises(ConfigurationError) as caught:
        MemoryBackend.from_env()
    assert str(caught.value) == text


@pytest.mark.parametrize(
    "settings",
    [
        {"maxsize": 0},
        {"publish_timeout": -1.0},
        {"publish_timeout": float("nan")},
        {"lease": 0.0},
        {"lease": float("inf")},
    ],
)
def test_arguments_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    (name,) = settings
    with pytest.raises(ConfigurationError, match=f"{name} is .*; it must be"):
        fresh(**settings)


def test_a_store_name_follows_the_rules_of_keys() -> None:
    with pytest.raises(InvalidKeyError):
        MemoryBackend("a b")
    assert "a b" not in memory._stores
