"""`SyncBackend.aio`: the same connection, awaited from any event loop."""

from __future__ import annotations

import asyncio
import gc
import itertools
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

import abe
from abe.backends.message_queue.base import MessageStream
from abe.backends.message_queue.base.subscription import pump
from abe.sync import SyncBackend

LONG = 30.0
_names = itertools.count()


@pytest.fixture
def queue() -> Iterator[SyncBackend]:
    """A connection to a memory store of its own."""
    with abe.connect("memory", env={"ABE_MEMORY_NAME": f"aio-{next(_names)}"}) as queue:
        yield queue


def fill(queue: SyncBackend, count: int) -> None:
    """Publish ``{"n": 0}``, ``{"n": 1}`` …"""
    queue.publish_many([{"n": n} for n in range(count)], key="orders")


def backlog(queue: SyncBackend) -> tuple[int | None, int | None]:
    """What is ready, and what is in somebody's hands."""
    entries = queue.stats().entries
    return (entries[0].ready, entries[0].in_flight) if entries else (0, 0)


def test_every_method_is_awaitable_from_any_loop(queue: SyncBackend) -> None:
    """The loop of the caller, another one in a thread, and the portal's own."""

    async def use() -> None:
        aio = queue.aio
        await aio.publish("orders", {"n": 1}, headers={"a": "b"})
        assert await aio.publish_many([{"n": 2}], key="orders") == 1
        assert [m["n"] for m in await aio.peek()] == [1, 2]
        assert (await aio.stats()).total("ready") == 2
        assert await aio.dead_letters() == []
        assert await aio.replay() == 0
        await aio.ping()
        async with aio.consume() as stream:
            assert await aio.groups() == [None]
            assert [m["n"] for m in await stream.take(2, timeout=LONG)] == [1, 2]
        assert await aio.purge() == 0
        await aio.delete_group(None)

    asyncio.run(use())
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, use()).result(LONG)
    queue._pool.portal.call(use())


def test_what_one_loop_publishes_another_consumes(queue: SyncBackend) -> None:
    """And the synchronous side sees all of it."""
    fill(queue, 3)

    async def publish() -> None:
        for n in range(3, 100):
            await queue.aio.publish("orders", {"n": n})

    async def consume() -> list[int]:
        found = []
        async with queue.aio.consume() as stream:
            async for message in stream:
                found.append(message["n"])
                if len(found) == 100:
                    await message.ack()
                    break
        return found

    with ThreadPoolExecutor(2) as pool:
        consuming = pool.submit(asyncio.run, consume())
        pool.submit(asyncio.run, publish()).result(LONG)
        assert consuming.result(LONG) == list(range(100))
    assert queue.stats().entries == ()


async def receive(stream: MessageStream) -> list[abe.Message]:
    if random.random() < 0.5:
        return [await anext(stream)]
    return await stream.take(2, timeout=0.02)


def test_cancellations_that_race_deliveries_lose_nothing(queue: SyncBackend) -> None:
    """200 of each, for the iterator and for take."""
    random.seed(1)

    async def main() -> tuple[list[int], int]:
        found: list[int] = []
        cancelled = 0
        async with queue.aio.consume() as stream:
            n = 0
            while len(found) < 200:
                waiting = asyncio.ensure_future(receive(stream))
                if n < 200:
                    await asyncio.sleep(random.uniform(0.0, 0.0005))
                    publishing = asyncio.ensure_future(queue.aio.publish("orders", {"n": n}))
                    n += 1
                    await asyncio.sleep(random.uniform(0.0, 0.0003))
                    waiting.cancel()
                    await publishing
                try:
                    got = await waiting
                except asyncio.CancelledError:
                    cancelled += 1
                else:
                    found += [m["n"] for m in got]
        return found, cancelled

    found, cancelled = asyncio.run(asyncio.wait_for(main(), LONG))
    assert sorted(found) == list(range(200))
    assert cancelled > 10


def test_a_cancelled_stream_does_not_swallow_what_arrives_later(
    queue: SyncBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless its reader comes back soon; when it does later, it goes on."""
    monkeypatch.setattr(pump, "KEEP_OPEN", 0.02)

    async def main() -> None:
        stream = queue.aio.consume()
        for step in (anext(stream), stream.take(3)):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(step, 0.01)
            await queue.aio.publish("orders", {"n": 1})
            assert queue.take(timeout=LONG) == [{"n": 1}]
        await queue.aio.publish("orders", {"n": 2})
        assert await anext(stream) == {"n": 2}
        await stream.aclose()

    started = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - started < 15.0, "half of the lease"


def test_closing_ends_who_is_waiting(queue: SyncBackend) -> None:
    """The stream, and the whole backend."""

    async def wait(stream: MessageStream) -> bool:
        return await anext(stream, None) is None

    async def main() -> None:
        for close in (lambda s: s.aclose(), lambda _: queue.aio.aclose()):
            stream = queue.aio.consume()
            await stream.__aenter__()
            waiting = asyncio.ensure_future(wait(stream))
            await asyncio.sleep(0.01)
            await close(stream)
            async with asyncio.timeout(LONG):
                assert await waiting
            assert await wait(stream)
        await queue.aio.aclose()
        with pytest.raises(abe.BackendClosedError):
            await queue.aio.publish("orders", {})

    asyncio.run(main())
    assert queue.closed


def test_a_dropped_stream_gives_everything_back(queue: SyncBackend) -> None:
    """Without a warning: its connection lives on."""
    fill(queue, 10)

    async def main() -> None:
        async for message in queue.aio.consume():
            if message["n"] == 3:
                break

    asyncio.run(main())
    gc.collect()
    assert backlog(queue) == (7, 0)
    assert [(m["n"], m.attempt) for m in queue.take(2)] == [(3, 1), (4, 1)]


def test_the_view_can_own_the_connection() -> None:
    """``async with abe.connect(…).aio``."""
    name = f"aio-{next(_names)}"

    async def main() -> None:
        async with abe.connect("memory", env={"ABE_MEMORY_NAME": name}).aio as aio:
            assert repr(aio) == "<AsyncBackend memory>"
            assert (aio.name, aio.capabilities.durable) == ("memory", False)
            await aio.publish("orders", {"n": 1})
        with pytest.raises(abe.BackendClosedError):
            await aio.stats()

    asyncio.run(main())


def test_a_blocking_call_in_a_coroutine_beside_awaits(queue: SyncBackend) -> None:
    """A cell may mix both; the blocking one blocks its own loop only."""
    started = threading.Event()

    async def main() -> None:
        waiting = asyncio.ensure_future(anext(queue.aio.consume(group="a")))
        await asyncio.sleep(0.01)
        started.set()
        assert queue.take(timeout=LONG, group="b") == [{"n": 1}]
        assert await waiting == {"n": 1}

    def publish() -> None:
        started.wait(LONG)
        deadline = time.monotonic() + LONG
        while set(queue.groups()) != {"a", "b"}:
            assert time.monotonic() < deadline
        queue.publish("orders", {"n": 1})

    with ThreadPoolExecutor(1) as pool:
        publishing = pool.submit(publish)
        asyncio.run(main())
        publishing.result(LONG)
