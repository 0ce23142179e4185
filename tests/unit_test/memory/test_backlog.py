"""Dead letters, looking and cleaning up, beyond the contract."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from abe.backends.message_queue.base import KeyFilter
from abe.errors import ConfigurationError, InvalidKeyError, UnsupportedError
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

if TYPE_CHECKING:
    from abe.backends.message_queue.service.memory import MemoryBackend


async def test_a_dead_letter_keeps_its_headers_and_returns_to_its_group_alone(
    backend: MemoryBackend,
) -> None:
    await backend.publish("k", {"n": 1}, headers={"trace": "t"})
    a, b = await driver(backend, "a"), await driver(backend, "b")
    await a.settle(await a.one(), outcome=REJECT, reason="no good")
    (dead,) = await backend.dead_letters(group="a")
    assert (dead.headers["trace"], dead.headers["abe-dead-reason"]) == ("t", "no good")
    assert dead.timestamp is not None
    assert float(dead.headers["abe-dead-time"]) >= dead.timestamp.timestamp()
    with pytest.raises(UnsupportedError):
        await dead.ack()
    other = await b.one()
    assert other.message.headers == {"trace": "t"}
    await b.settle(other)
    async with waiting(a.receiver) as task:
        assert await backend.replay(group="a", ids=dead.id) == 1
        (again,) = await task
    assert again.message.headers == {"trace": "t"}
    assert await (await driver(backend, "new")).take() == []


async def test_a_replayed_message_goes_once_settled_and_can_die_again(
    backend: MemoryBackend,
) -> None:
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
    assert remembers(backend) == 0
    assert await backend.replay(group="a") == 1
    assert ns(await a.drain()) == [1]
    assert remembers(backend) == 0


async def test_a_limit_of_none_and_an_unknown_group_select_nothing(backend: MemoryBackend) -> None:
    await publish(backend, 1, 2)
    consumer = await driver(backend)
    await consumer.settle(await consumer.one(), outcome=REJECT)
    for limit in (0, -1):
        assert await backend.peek(limit=limit) == []
        assert await backend.dead_letters(limit=limit) == []
        assert await backend.replay(limit=limit) == 0
    assert await backend.replay(ids=[]) == 0
    assert await backend.dead_letters(group="unknown") == []
    assert await backend.replay(group="unknown") == 0
    with pytest.raises(InvalidKeyError):
        await backend.peek("a.**.b")
    with pytest.raises(InvalidKeyError):
        await backend.peek(group="a b")


async def test_a_message_whose_lease_has_lapsed_counts_as_waiting(backend: MemoryBackend) -> None:
    await publish(backend, 1)
    consumer = await driver(backend)
    await consumer.one()
    assert await backend.purge() == 0
    pass_time(backend, LEASE)
    (entry,) = (await backend.stats()).entries
    assert (entry.ready, entry.in_flight) == (1, 0)
    assert await backend.purge() == 1
    assert await consumer.take() == []


async def test_the_oldest_age_leaves_dead_letters_out(
    backend: MemoryBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
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


async def test_delete_group_forgets_backlog_and_dead_letters(backend: MemoryBackend) -> None:
    a, b = await driver(backend, "a"), await driver(backend, "b")
    await publish(backend, 1, 2, 3)
    held, dead, _ = await a.take()
    await a.settle(dead, outcome=REJECT)
    assert ns(await b.drain()) == [1, 2, 3]
    await backend.delete_group("a")
    assert await backend.groups() == ["b"]
    assert await backend.dead_letters(group="a") == []
    assert remembers(backend) == 0
    assert len(await a.settle(held)) == 1
    assert await a.receiver.extend([held], 1.0) == [held]
    await publish(backend, 4)
    assert ns(await (await driver(backend, "a")).drain()) == [4]
    with pytest.raises(ConfigurationError, match="there is no group 'c'"):
        await backend.delete_group("c")
    with pytest.raises(ConfigurationError, match="there is no group None"):
        await backend.delete_group(None)


async def test_an_open_stream_of_a_deleted_group_fails_clearly_waiting_or_not(
    backend: MemoryBackend,
) -> None:
    text = "group 'g' was deleted while this stream was open; open a new stream"
    await publish(backend, 1)
    idle, other = await driver(backend, "g"), await driver(backend, "g", "nothing")
    stream = backend.consume(group="g", keys="nothing.else")
    async with waiting(other.receiver) as receiving:
        waiter = asyncio.create_task(anext(stream))
        await until(lambda: waits(backend) == 2)
        await backend.delete_group("g")
        for failing in (receiving, waiter):
            with pytest.raises(ConfigurationError, match=text):
                await failing
    with pytest.raises(ConfigurationError, match=text):
        await idle.take()
    await idle.receiver.aclose()


async def test_peeking_looks_at_no_more_than_it_shows(
    backend: MemoryBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In publish order, although some came back and some are in flight."""
    looked: list[str] = []

    def matches(keys: KeyFilter, key: str) -> bool:
        looked.append(key)
        return True

    one = await driver(backend)
    await backend.publish_many([{"n": n} for n in range(1000)], key="k")
    _, *others = await one.take(5)
    await one.settle(others[2], others[0], outcome=NACK)
    await one.settle(*others[1::2], outcome=RELEASE)
    monkeypatch.setattr(KeyFilter, "matches", matches)
    assert ns(await backend.peek(limit=6)) == [1, 2, 3, 4, 5, 6]
    assert ns(await backend.peek(group="new", limit=3)) == [0, 1, 2]
    assert len(looked) <= 6 + 3


async def test_beginnings_are_counted_until_the_message_is_done(backend: MemoryBackend) -> None:
    await backend.publish("k", {})
    one, other = await driver(backend), await driver(backend, "other")
    counts = []
    for outcome in (NACK, RELEASE, REJECT):
        delivery = await one.one()
        counts.append(delivery.begun)
        await one.receiver.begin([delivery])  # type: ignore[attr-defined]
        await one.settle(delivery, outcome=outcome)
        await one.receiver.begin([delivery])  # type: ignore[attr-defined]  # too late to count
    assert counts == [0, 1, 2]
    assert (await other.one()).begun == 0
    await backend.replay()
    assert (await one.one()).begun == 0


async def test_counting_a_long_backlog_lets_others_work(backend: MemoryBackend) -> None:
    await backend.publish_many([{}] * 25_000, key="k")
    one = await driver(backend)
    counting = asyncio.ensure_future(backend.stats())
    await asyncio.sleep(0)
    while not counting.done():
        assert not await one.settle(await one.one())
        await asyncio.sleep(0)
    (entry,) = counting.result().entries
    assert (entry.group, entry.ready) == (None, 25_000)
    assert remembers(backend) < 2 * 25_000  # some were settled meanwhile


async def test_purging_a_long_backlog_lets_others_work_and_ends(backend: MemoryBackend) -> None:
    await backend.publish_many([{}] * 25_000, key="k")
    one = await driver(backend)
    purging = asyncio.ensure_future(backend.purge())
    await asyncio.sleep(0)
    taken = 0
    while not purging.done():
        taken += len(await one.drain())
        await publish(backend, 1)
        await asyncio.sleep(0)
    assert taken > 1
    assert purging.result() + taken >= 25_000
