"""`SyncBackend.aio`: the same connection, awaited from any event loop."""

from __future__ import annotations

import asyncio
import copy
import gc
import itertools
import pickle
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


def test_many_awaits_at_a_time(queue: SyncBackend) -> None:
    """Fifty at once, as a web service would."""

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            for n in range(50):
                group.create_task(queue.aio.publish("orders", {"n": n}))

    asyncio.run(main())
    assert sorted(m["n"] for m in queue.take(50)) == list(range(50))


def test_settling_on_resume(queue: SyncBackend) -> None:
    """As with the stream of an async backend."""
    fill(queue, 5)

    async def main() -> None:
        async with queue.aio.consume() as stream:
            assert (await anext(stream))["n"] == 0
            second = await anext(stream)
            assert second["n"] == 1
            await stream.flush()
            outcomes = [second.outcome]
        assert [*outcomes, second.outcome] == [None, "release"]
        assert [m["n"] for m in await queue.aio.peek()] == [1, 2, 3, 4]

    asyncio.run(main())


def test_settling_explicitly(queue: SyncBackend) -> None:
    """Each method says whether it was the first."""
    fill(queue, 4)

    async def main() -> None:
        async with queue.aio.consume() as stream:
            message = await anext(stream)
            assert isinstance(message, abe.Message)
            assert repr(message).startswith("Message({'n': 0}, id=")
            assert await message.ack()
            assert not await message.nack()
            assert await (await anext(stream)).nack(delay=60)
            assert await (await anext(stream)).reject("spoilt")
            assert await (await anext(stream)).release()
        assert [m["n"] for m in await queue.aio.peek()] == [3]
        assert [m["n"] for m in await queue.aio.dead_letters()] == [2]

    asyncio.run(main())


def test_a_detached_message_is_settled_by_its_new_owner(queue: SyncBackend) -> None:
    """Asking for more does not ack it."""
    fill(queue, 3)

    async def main() -> None:
        async with queue.aio.consume() as stream:
            first = await anext(stream)
            first.detach()
            (second,) = await stream.take(1)
            await anext(stream)
            await stream.flush()
            assert (first.outcome, second.outcome) == (None, "ack")
            assert await first.nack()
        assert [(m["n"], m.attempt) for m in await queue.aio.peek()] == [(0, 2), (2, 1)]

    asyncio.run(main())


def test_take_acks_on_the_next_call_or_a_clean_exit(queue: SyncBackend) -> None:
    """And gives everything back after an exception."""
    fill(queue, 5)

    async def main() -> None:
        async with queue.aio.consume() as stream:
            first = await stream.take(2)
            assert [m.outcome for m in first] == [None, None]
            second = await stream.take(1)
            assert [m.outcome for m in first] == ["ack", "ack"]
        assert [m.outcome for m in second] == ["ack"]
        stream = queue.aio.consume()
        with pytest.raises(ZeroDivisionError):
            await fail_with_messages_in_hand(stream)
        assert stream.closed
        assert await stream.take() == []
        assert [m["n"] for m in await queue.aio.peek()] == [3, 4]

    asyncio.run(main())


async def fail_with_messages_in_hand(stream: MessageStream) -> None:
    async with stream:
        assert [m["n"] for m in await stream.take(2)] == [3, 4]
        _ = 1 / 0


def test_unread_puts_a_message_back_to_the_front(queue: SyncBackend) -> None:
    """It is handed over again, and not acked meanwhile."""
    fill(queue, 3)

    async def main() -> None:
        async with queue.aio.consume() as stream:
            first = await anext(stream)
            assert stream.unread(first)
            assert not stream.unread(first)
            again = await anext(stream)
            assert again == first
            assert first.outcome is None
            taken = await stream.take(2)
            for message in reversed(taken):
                assert stream.unread(message)
            assert [m["n"] for m in await stream.take(2)] == [1, 2]
            assert not stream.unread(abe.Message({"n": 9}))

    asyncio.run(main())
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


def test_a_timeout_leaves_the_stream_usable(queue: SyncBackend) -> None:
    """Around a step, as code for asyncio is wont to do."""

    async def main() -> None:
        async with queue.aio.consume() as stream:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await anext(stream)
            await queue.aio.publish("orders", {"n": 1})
            assert await anext(stream) == {"n": 1}

    asyncio.run(main())


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


def test_messages_can_be_copied_and_pickled(queue: SyncBackend) -> None:
    """They lose the ability to settle, and nothing else."""
    queue.publish("orders", {"n": 1}, headers={"a": "b"})

    async def main() -> None:
        async with queue.aio.consume() as stream:
            message = await anext(stream)
            for other in (copy.copy(message), pickle.loads(pickle.dumps(message))):
                assert type(other) is abe.Message
                assert (other, other.id, other.headers) == (message, message.id, message.headers)
                with pytest.raises(abe.UnsupportedError):
                    await other.ack()

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
