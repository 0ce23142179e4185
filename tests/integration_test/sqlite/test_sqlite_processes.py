"""Several processes, loops and forks on one queue file."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from abe.backends.message_queue.service.sqlite import SQLiteBackend

Child = Callable[..., Any]

CONSUMER = """
async def main():
    async with SQLiteBackend(sys.argv[1], lease=float(sys.argv[2])) as backend:
        async with backend.consume(prefetch=1) as stream:
            say("open")
            async for message in stream:
                say(message["n"], message.attempt, time.time())
                if hear() == "ack":
                    await message.ack()
                    await stream.flush()
                    say("acked")
asyncio.run(main())
"""


async def _first(stream: Any, count: int) -> Any:
    for message in await stream.take(count):
        yield message


def test_an_idle_consumer_learns_soon_what_another_process_published(
    path: Path, child: Child
) -> None:
    async def use() -> list[float]:
        delays = []
        async with SQLiteBackend(path) as backend:
            consumer = child(CONSUMER, path, 30)
            assert consumer.hear() == "open"
            for n in range(8):
                await asyncio.sleep(0.05 * n)
                published = time.time()
                await backend.publish("k", {"n": n})
                heard = await asyncio.to_thread(consumer.hear)
                delays.append(float(heard.split()[2]) - published)
                consumer.say("ack")
                assert await asyncio.to_thread(consumer.hear) == "acked"
        return sorted(delays)

    assert asyncio.run(use())[4] < 0.5


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_backend_with_a_stream_open_can_be_forked(path: Path) -> None:
    async def in_child(backend: SQLiteBackend) -> int:
        await backend.publish("k", {"n": 1})
        async with backend.consume(group="child") as stream, asyncio.timeout(10):
            received = [m["n"] for m in await stream.take(2)]
        await backend.aclose()
        return 0 if received == [0, 1] else 2

    async def use() -> None:
        async with SQLiteBackend(path) as backend, backend.consume(group="parent") as stream:
            await backend.publish("k", {"n": 0})
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    code = asyncio.Runner().run(in_child(backend))
                finally:
                    os._exit(code)
            async with asyncio.timeout(10):
                received = [m["n"] for m in await stream.take(2)]
            _, status = await asyncio.to_thread(os.waitpid, pid, 0)
            assert (received, os.waitstatus_to_exitcode(status)) == ([0, 1], 0)

    asyncio.run(use())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("fork", ["os.fork", "ctypes.PyDLL(None).fork"])
def test_a_forked_child_has_locks_of_its_own(
    path: Path, child: Child, locked: Callable[[], str], fork: str
) -> None:
    # It would inherit SQLite's account of the parent's locks, take none, and lose the log to
    # whoever closes the file next.
    script = """
fork = HOW_TO_FORK
async def in_child(backend):
    if fork is not os.fork:
        try:
            await backend.publish("k", {"n": -1})
        except LoopError:
            backend = SQLiteBackend(sys.argv[1])
    await backend.publish("k", {"n": 1})
    say("ready")
    hear()

async def in_parent(backend):
    await backend.publish("k", {"n": 2})
    await backend.aclose()
    say("ready")

backend = SQLiteBackend(sys.argv[1])
asyncio.run(backend.publish("k", {"n": 0}))
if not (pid := fork()):
    asyncio.run(in_child(backend))
    os._exit(0)
asyncio.run(in_parent(backend))
os.waitpid(pid, 0)
"""
    forking = child(script.replace("HOW_TO_FORK", fork), path)
    assert (forking.hear(), forking.hear()) == ("ready", "ready")
    assert locked() == "locked"
    forking.say()
    forking.end()
    assert locked() == "free"

    async def count() -> int:
        async with SQLiteBackend(path) as backend:
            return len(await backend.peek())

    assert asyncio.run(count()) == 3


def test_loops_and_threads_share_a_backend(path: Path) -> None:
    backend = SQLiteBackend(path)
    total = 300
    received: list[int] = []
    lock = threading.Lock()
    done = threading.Event()

    async def produce(first: int) -> None:
        for n in range(first, first + 100):
            await backend.publish("k", {"n": n})

    async def consume() -> None:
        async with backend.consume() as stream:
            while not done.is_set():
                messages = await stream.take(10, 0.05)
                with lock:
                    received.extend(m["n"] for m in messages)
                    if len(received) >= total:
                        done.set()

    jobs: list[Callable[[], Any]] = [partial(produce, 100 * n) for n in range(3)]
    jobs += [consume] * 3
    threads = [threading.Thread(target=lambda job: asyncio.run(job()), args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    asyncio.run(backend.aclose())
    assert sorted(received) == [*range(total)]
    assert not [t for t in threading.enumerate() if t.name == "abe-sqlite"]


def test_every_message_goes_to_one_consumer_of_several_processes(path: Path, child: Child) -> None:
    script = """
async def main():
    async with SQLiteBackend(sys.argv[1]) as backend:
        say("ready"), hear()
        async with backend.consume() as stream:
            seen = []
            while messages := await stream.take(20, 1.0):
                seen += [m["n"] for m in messages]
        say(*seen)
asyncio.run(main())
"""

    async def publish() -> None:
        async with SQLiteBackend(path) as backend:
            for first in range(0, 1000, 100):
                await backend.publish_many([{"n": first + n} for n in range(100)], key="k")

    consumers = [child(script, path) for _ in range(3)]
    for consumer in consumers:
        assert consumer.hear() == "ready"
    for consumer in consumers:
        consumer.say()
    asyncio.run(publish())
    seen = Counter(n for consumer in consumers for n in consumer.hear().split())
    assert seen == {str(n): 1 for n in range(1000)}


@pytest.mark.skipif(sys.platform == "win32", reason="open files")
def test_nothing_stays_open_after_closing(path: Path) -> None:
    async def use() -> None:
        async with SQLiteBackend(path) as backend, backend.consume() as stream:
            await backend.publish("k", {})
            await stream.take(1, 5)
            await backend.stats()

    def descriptors() -> int:
        return len(list(Path("/dev/fd").iterdir()))

    asyncio.run(use())
    before = descriptors()
    for _ in range(3):
        asyncio.run(use())
    assert descriptors() == before
    assert not [t for t in threading.enumerate() if t.name == "abe-sqlite"]


@pytest.mark.parametrize("forgotten", [True, False])
def test_a_process_that_does_not_close_its_backend_ends_quietly(
    path: Path, forgotten: bool
) -> None:
    script = f"""
import asyncio
from abe.backends.message_queue.service.sqlite import SQLiteBackend

async def main():
    backend = SQLiteBackend({str(path)!r})
    stream = backend.consume()
    await backend.publish("k", {{"n": 1}})
    await anext(stream)
    await stream.aclose()
    return backend
backend = asyncio.run(main())
if {forgotten}:
    del backend
"""
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", script]
    process = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")

    async def look() -> list[Any]:
        async with SQLiteBackend(path) as backend:
            return [(m["n"], m.attempt) for m in await backend.peek()]

    assert asyncio.run(look()) == [(1, 1)]
