"""The memory backend belongs to no loop and no thread: publish on one, consume on another."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from functools import partial
from typing import Any

import pytest

from abe.backends.message_queue.base import KeyFilter, Outcome, Settlement
from abe.backends.message_queue.service.memory import MemoryBackend
from abe.errors import BackendClosedError, ConfigurationError
from tests.unit_test.memory.support import remembers, waits

TIMEOUT = 20.0

_names = (f"threads.{n}" for n in itertools.count())


def in_thread(main: Callable[[], Coroutine[Any, Any, Any]]) -> Future[Any]:
    """Run a coroutine function on a new event loop in a new thread."""
    future: Future[Any] = Future()

    async def limited() -> Any:
        async with asyncio.timeout(TIMEOUT):
            return await main()

    def body() -> None:
        try:
            future.set_result(asyncio.run(limited()))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=body, daemon=True).start()
    return future


def test_publish_on_one_loop_and_consume_on_another() -> None:
    name = next(_names)
    consuming = threading.Event()

    async def consume() -> list[int]:
        async with MemoryBackend(name) as backend, backend.consume(group="g") as stream:
            consuming.set()
            return [message["n"] for message in await stream.take(1000)]

    async def publish() -> None:
        async with MemoryBackend(name) as backend:
            for n in range(1000):
                await backend.publish("k", {"n": n})
                if n % 50 == 0:
                    await asyncio.sleep(0)

    consumer = in_thread(consume)
    assert consuming.wait(TIMEOUT)
    in_thread(publish).result(TIMEOUT)
    assert consumer.result(TIMEOUT) == list(range(1000))


def test_one_backend_object_serves_several_loops_at_once() -> None:
    backend = MemoryBackend(next(_names))
    consuming = threading.Event()

    async def consume() -> list[dict[str, Any]]:
        async with backend.consume(group="g") as stream:
            consuming.set()
            return [*await stream.take(2)]

    async def publish(n: int) -> None:
        await backend.publish("k", {"n": n})

    async def close() -> None:
        await backend.aclose()

    consumer = in_thread(consume)
    assert consuming.wait(TIMEOUT)
    in_thread(partial(publish, 1)).result(TIMEOUT)
    asyncio.run(publish(2))
    assert consumer.result(TIMEOUT) == [{"n": 1}, {"n": 2}]
    asyncio.run(close())
    with pytest.raises(BackendClosedError):
        asyncio.run(publish(3))


def test_closing_on_one_loop_ends_a_stream_that_waits_on_another() -> None:
    backend = MemoryBackend(next(_names))
    waiting = threading.Event()

    async def consume() -> list[dict[str, Any]]:
        received = []
        async for message in backend.consume(group="g"):
            received.append(dict(message))
            waiting.set()
        return received

    async def main() -> None:
        await backend.publish("k", {"n": 1})
        assert await asyncio.to_thread(waiting.wait, TIMEOUT)
        await backend.aclose()

    consumer = in_thread(consume)
    asyncio.run(main())
    assert consumer.result(TIMEOUT) == [{"n": 1}]


def test_fifty_threads_at_once_lose_nothing_and_double_nothing() -> None:
    name, each, publishers, consumers = next(_names), 40, 25, 25
    total = each * publishers
    received: Counter[tuple[int, int]] = Counter()
    attempts: list[int] = []
    lock = threading.Lock()
    done = threading.Event()
    ready = threading.Barrier(publishers + consumers)

    async def publish(worker: int) -> None:
        async with MemoryBackend(name) as backend:
            await asyncio.to_thread(ready.wait, TIMEOUT)
            for n in range(each):
                await backend.publish(f"k.{worker}", {"worker": worker, "n": n})

    async def consume(worker: int) -> None:
        backend = MemoryBackend(name)
        stream = backend.consume(group="g", keys="k.*" if worker % 2 else None)
        async with backend, stream:
            await asyncio.to_thread(ready.wait, TIMEOUT)
            while not done.is_set():
                for message in await stream.take(1 + worker % 5, timeout=0.05):
                    with lock:
                        received[message["worker"], message["n"]] += 1
                        attempts.append(message.attempt)
                        if len(received) == total:
                            done.set()

    asyncio.run(_open_group(name))
    futures = [in_thread(partial(publish, n)) for n in range(publishers)]
    futures += [in_thread(partial(consume, n)) for n in range(consumers)]
    for future in futures:
        future.result(TIMEOUT)
    assert len(received) == total
    assert set(received.values()) == {1}
    assert set(attempts) == {1}
    backend = MemoryBackend(name)
    assert remembers(backend) == waits(backend) == 0


async def _open_group(name: str) -> None:
    async with MemoryBackend(name) as backend, backend.consume(group="g"):
        pass


def test_publishers_on_many_loops_wait_for_room_and_all_get_through() -> None:
    name, publishers, each = next(_names), 8, 50
    total = publishers * each
    most = 0

    async def publish(worker: int) -> None:
        async with MemoryBackend(name, maxsize=10, publish_timeout=TIMEOUT) as backend:
            for n in range(each):
                await backend.publish("k", {"worker": worker, "n": n})

    async def consume() -> Counter[tuple[int, int]]:
        nonlocal most
        received: Counter[tuple[int, int]] = Counter()
        backend = MemoryBackend(name)
        async with backend, backend.consume(group="g") as stream:
            while len(received) < total:
                for message in await stream.take(5, timeout=1.0):
                    received[message["worker"], message["n"]] += 1
                most = max(most, len(await backend.peek(group="new", limit=100)))
        return received

    asyncio.run(_open_group(name))
    futures = [in_thread(partial(publish, n)) for n in range(publishers)]
    received = in_thread(consume).result(TIMEOUT)
    for future in futures:
        future.result(TIMEOUT)
    assert len(received) == total
    assert set(received.values()) == {1}
    assert 0 < most <= 10


def test_what_one_thread_returns_wakes_a_consumer_on_another() -> None:
    name = next(_names)
    taken, waiting = threading.Event(), threading.Event()

    async def first() -> None:
        async with MemoryBackend(name) as backend, backend.consume() as stream:
            message = await anext(stream)
            taken.set()
            assert await asyncio.to_thread(waiting.wait, TIMEOUT)
            await message.nack()

    async def second() -> int:
        async with MemoryBackend(name) as backend, backend.consume() as stream:
            waiter = asyncio.create_task(stream.take())
            while not waits(backend):  # noqa: ASYNC110 - nothing to wait for
                await asyncio.sleep(0.001)
            waiting.set()
            (message,) = await waiter
            return message.attempt

    async def publish() -> None:
        await MemoryBackend(name).publish("k", {})

    one = in_thread(first)
    asyncio.run(publish())
    assert taken.wait(TIMEOUT)
    assert in_thread(second).result(TIMEOUT) == 2
    one.result(TIMEOUT)


def test_a_loop_that_died_while_its_consumer_waited_breaks_nobody() -> None:
    name = next(_names)
    loop = asyncio.new_event_loop()
    store = MemoryBackend(name)._store

    async def wait() -> None:
        group, view = store.open_group("dead", KeyFilter())
        store.take(group, view, 1, 30.0)

    loop.run_until_complete(wait())
    loop.close()
    assert waits(MemoryBackend(name)) == 1

    async def main() -> None:
        async with MemoryBackend(name) as backend, backend.consume(group="alive") as stream:
            await backend.publish("k", {"n": 1})
            assert await stream.take(1, timeout=TIMEOUT) == [{"n": 1}]

    asyncio.run(main())
    assert waits(MemoryBackend(name)) == 0


def test_deleting_a_group_while_others_take_from_it_hands_out_nothing_more() -> None:
    """Whatever the timing: a receive ends with messages, or with the error, never hangs."""

    async def consume(name: str, started: threading.Event) -> int:
        receiver = MemoryBackend(name)._receiver("g", KeyFilter())
        await receiver.open()
        count = 0

        async def forever() -> None:
            nonlocal count
            while True:
                deliveries = await receiver.receive(1, TIMEOUT)
                count += len(deliveries)
                await receiver.settle([Settlement(d, Outcome.ACK) for d in deliveries])

        started.set()
        with pytest.raises(ConfigurationError, match="was deleted"):
            await forever()
        return count

    for _ in range(20):
        name, started = next(_names), threading.Event()
        backend = MemoryBackend(name)
        asyncio.run(backend.publish_many([{"n": n} for n in range(50)], key="k"))
        consumer = in_thread(partial(consume, name, started))
        assert started.wait(TIMEOUT)
        asyncio.run(backend.delete_group("g"))
        assert 0 <= consumer.result(TIMEOUT) <= 50
        assert remembers(backend) == waits(backend) == 0


FORK = """
import asyncio, os, threading, warnings
from abe.backends.message_queue.service.memory import MemoryBackend

warnings.simplefilter("ignore", DeprecationWarning)  # to fork with threads is the test
backend = MemoryBackend("fork")
store = backend._store
stop = threading.Event()

async def publish_without_pause():
    async with backend.consume(group="a"), backend.consume(group="b"):
        while not stop.is_set():
            await backend.publish("k", {})

async def check(n):
    groups = store._groups.values()
    for seq, record in store._records.items():
        assert record.pending == sum(seq in group.ready for group in groups), record.pending
    assert not store._waiting
    await backend.publish("child", {"n": n})
    async with backend.consume(group="a", keys="child") as stream:
        assert await stream.take(1, timeout=10) == [{"n": n}]

thread = threading.Thread(target=lambda: asyncio.run(publish_without_pause()))
thread.start()
while len(store._groups) < 2:
    pass
for n in range(CHILDREN):
    pid = os.fork()
    if pid == 0:
        try:
            asyncio.run(check(n))
            print("child is fine", flush=True)
        except BaseException as error:
            print("child:", repr(error), flush=True)
        os._exit(0)
    os.waitpid(pid, 0)
    for group in ("a", "b"):
        asyncio.run(backend.purge(group=group))
stop.set()
thread.join()
asyncio.run(check(CHILDREN))
print("parent is fine", flush=True)
"""

IDS = """
import asyncio, os
from abe.backends.message_queue.service.memory import MemoryBackend

backend = MemoryBackend("ids")

async def publish():
    await backend.publish("k", {})
    print(*[message.id for message in await backend.peek()], flush=True)

asyncio.run(publish())
for _ in range(2):
    pid = os.fork()
    if pid == 0:
        asyncio.run(publish())
        os._exit(0)
    os.waitpid(pid, 0)
"""

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform cannot fork")


def python(source: str) -> list[str]:
    """Run a program that forks in a process of its own and return what it printed, by line."""
    command = [sys.executable, "-W", "error", "-c", source]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.splitlines()


@forks
def test_a_fork_at_any_moment_leaves_a_whole_store_on_both_sides() -> None:
    children = 40
    lines = python(FORK.replace("CHILDREN", str(children)))
    assert lines == ["child is fine"] * children + ["parent is fine"]


@forks
def test_messages_published_after_a_fork_have_ids_of_their_own() -> None:
    before, one, two = (line.split() for line in python(IDS))
    assert one[0] == two[0] == before[0]
    assert one[1] != two[1]
