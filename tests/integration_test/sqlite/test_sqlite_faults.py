"""The SQLite backend when the disk is full, the file read-only, or another process in the way."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from abe.backends.message_queue.service.sqlite import SQLiteBackend
from abe.backends.message_queue.service.sqlite import thread as _sqlite_thread
from abe.backends.message_queue.service.sqlite.thread import Mode
from abe.errors import ConfigurationError, ConnectionLostError, PublishError

Child = Callable[..., Any]
posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX only")


async def numbers(backend: SQLiteBackend, count: int) -> list[int]:
    async with backend.consume() as stream, asyncio.timeout(20):
        return [message["n"] for message in await stream.take(count)]


# -- no room -------------------------------------------------------------------------------


def test_a_full_file_fails_the_publish_and_nothing_else(path: Path) -> None:
    async def use() -> None:
        async with SQLiteBackend(path) as backend:
            await backend.publish("k", {"n": 0})
            (pages,) = await backend._worker.run(
                lambda c: c.execute("PRAGMA page_count").fetchone()
            )
            await backend._worker.run(
                lambda c: c.execute(f"PRAGMA max_page_count = {pages + 3}").fetchone()
            )
            with pytest.raises(PublishError, match="nothing was stored") as caught:
                await backend.publish_many([{"n": n, "x": "x" * 1000} for n in range(100)], key="k")
            assert caught.value.retryable
            assert (list(caught.value.published), len(caught.value.failed)) == ([], 100)
            assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
            # Of those who share a commit, only the one that does not fit fails.
            big = backend.publish("k", {"n": -1, "x": "x" * 100_000})
            results = await asyncio.gather(
                backend.publish("k", {"n": 1}),
                big,
                backend.publish("k", {"n": 2}),
                return_exceptions=True,
            )
            assert [type(result) for result in results] == [type(None), PublishError, type(None)]
            assert await numbers(backend, 3) == [0, 1, 2]
            await backend._worker.run(
                lambda c: c.execute("PRAGMA max_page_count = 100000").fetchone()
            )
            await backend.publish("k", {"n": 3, "x": "x" * 100_000})
            assert await numbers(backend, 1) == [3]

    asyncio.run(use())


@posix
def test_a_full_disk_loses_nothing_that_was_published(path: Path, child: Child) -> None:
    script = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

async def main():
    async with SQLiteBackend(sys.argv[1]) as backend:
        await backend.publish("k", {"n": 0})
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
        n = 0
        try:
            while True:
                await backend.publish("k", {"n": n + 1, "x": "x" * 1000})
                n += 1
        except PublishError as error:
            say(n, error.retryable)
        try:
            await backend.publish_many([("k", {"n": -1, "x": "x" * 1000})] * 500)
        except PublishError as error:
            say(error.retryable, len(error.failed))
        hear()
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        await backend.publish("k", {"n": n + 1})
asyncio.run(main())
"""
    full = child(script, path)
    count, retryable = full.hear().split()
    assert int(count) > 10
    assert retryable == "True"
    assert full.hear() == "True 500"
    full.say()
    full.end()

    async def use() -> list[int]:
        async with SQLiteBackend(path) as backend:
            assert len(await backend.peek(limit=10**6)) == int(count) + 2
            return await numbers(backend, int(count) + 2)

    assert asyncio.run(use()) == [*range(int(count) + 2)]


@posix
def test_a_log_that_fills_the_disk_makes_room_itself(path: Path, child: Child) -> None:
    """Settling, purging and publishing go on as long as the file has room."""
    script = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

async def main():
    async with SQLiteBackend(sys.argv[1]) as backend:
        async with backend.consume():
            pass
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
        for n in range(100):
            await backend.publish("k", {"n": n})
            assert await backend.purge() == 1
    say("done")
asyncio.run(main())
"""
    full = child(script, path)
    assert full.hear() == "done"
    full.end()


def test_what_no_file_can_hold_is_not_worth_a_retry(path: Path) -> None:
    async def use() -> None:
        async with SQLiteBackend(path) as backend:
            await backend._worker.run(lambda c: c.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 10_000))
            with pytest.raises(PublishError) as caught:
                await backend.publish("k", {"x": "x" * 20_000})
            assert not caught.value.retryable

    asyncio.run(use())


# -- no permission -------------------------------------------------------------------------


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """A folder that a user other than root can reach."""
    with tempfile.TemporaryDirectory(prefix="abe-test-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


PUBLISH = """
import urllib.parse  # what is imported late may be out of reach by then

if os.geteuid() == 0:  # to whom no permission applies
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)

async def main():
    async with SQLiteBackend(sys.argv[1], busy_timeout=1) as backend:
        try:
            await backend.publish("k", {"n": 1})
        except PublishError as error:
            say(error.retryable, error)
        else:
            say("published")
        for call in (backend.peek, backend.ping, backend.groups, backend.consume().__anext__):
            try:
                await asyncio.wait_for(call(), 20)
            except AbeError as error:
                say(type(error).__name__, "ABE_SQLITE_PATH" in str(error))
asyncio.run(main())
"""


@posix
@pytest.mark.parametrize("what", ["missing file", "file", "file and folder", "unreadable file"])
def test_what_may_not_be_written_is_said_at_once(
    shared_folder: Path, child: Child, what: str
) -> None:
    """By whatever is called; an empty answer or an endless wait would look like an empty queue."""
    path = shared_folder / "q.sqlite3"

    async def make() -> None:
        async with SQLiteBackend(path) as backend:
            await backend.publish("k", {"n": 0})

    if what != "missing file":
        asyncio.run(make())
        path.chmod(0 if what == "unreadable file" else 0o444)
    if what not in ("file", "unreadable file"):
        shared_folder.chmod(0o555)
    before = path.read_bytes() if path.exists() else None
    try:
        said = child(PUBLISH, path).end()
    finally:
        shared_folder.chmod(0o755)
    first, *others = said.splitlines()
    assert first.startswith("False cannot write")
    assert str(path) in first
    assert "ABE_SQLITE_PATH" in first
    assert others == ["ConfigurationError True"] * 4
    assert (path.read_bytes() if path.exists() else None) == before


@posix
def test_a_folder_that_may_not_be_made_fails_the_publish(shared_folder: Path, child: Child) -> None:
    shared_folder.chmod(0o555)
    path = shared_folder / "new" / "q.sqlite3"
    said = child(PUBLISH, path).end()
    assert said.startswith("False cannot write")


# -- others in the way ---------------------------------------------------------------------


def lock(path: Path) -> sqlite3.Connection:
    c = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    c.execute("BEGIN IMMEDIATE")
    return c


def test_a_writer_that_stays_fails_the_publish_after_the_timeout(path: Path) -> None:
    async def use() -> None:
        async with SQLiteBackend(path, busy_timeout=0.2) as backend:
            await backend.publish("k", {"n": 0})
            loop = asyncio.get_running_loop()
            with closing(lock(path)):
                started = loop.time()
                results = await asyncio.gather(
                    *(backend.publish("k", {"n": n}) for n in range(50)), return_exceptions=True
                )
                # Together: not one after the other, each with a timeout of its own.
                assert 0.2 <= loop.time() - started < 2
                assert all(isinstance(r, PublishError) and r.retryable for r in results)
                assert len(await backend.peek(limit=100)) == 1
            await backend.publish("k", {"n": 1})
            assert await numbers(backend, 2) == [0, 1]

    asyncio.run(use())


def test_a_writer_that_goes_in_time_is_waited_for(path: Path) -> None:
    async def use() -> None:
        async with SQLiteBackend(path) as backend:
            await backend.publish("k", {"n": 0})
            other = lock(path)
            waiting = asyncio.ensure_future(backend.publish("k", {"n": 1}))
            await asyncio.wait([waiting], timeout=0.1)
            assert not waiting.done()
            other.close()
            await waiting
            assert await numbers(backend, 2) == [0, 1]

    asyncio.run(use())


def test_a_consumer_outlasts_a_writer_that_stays(path: Path) -> None:
    async def use() -> None:
        async with SQLiteBackend(path, busy_timeout=0.05) as backend:
            await backend.publish_many([{"n": n} for n in range(10)], key="k")
            async with backend.consume(prefetch=1) as stream:
                assert (await anext(stream))["n"] == 0
                other = lock(path)
                waiting = asyncio.ensure_future(anext(stream))
                await asyncio.wait([waiting], timeout=0.5)
                other.close()
                received = {(await waiting)["n"]}
                async with asyncio.timeout(10):
                    while received < set(range(1, 10)):
                        received.add((await anext(stream))["n"])
            assert (await backend.stats()).total("in_flight") == 0

    asyncio.run(use())


def test_closing_does_not_wait_long_for_somebody_elses_lock(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_sqlite_thread, "CLOSING_PATIENCE", 0.1)

    async def use() -> float:
        backend = SQLiteBackend(path, busy_timeout=60)
        await backend.publish("k", {})
        with closing(lock(path)):
            waiting = asyncio.ensure_future(backend.publish("k", {}))
            await asyncio.sleep(0)
            started = asyncio.get_running_loop().time()
            await backend.aclose()
            with pytest.raises(PublishError):
                await waiting
            return asyncio.get_running_loop().time() - started

    assert asyncio.run(use()) < 10


def test_looking_needs_no_lock(path: Path) -> None:
    async def use() -> None:
        async with SQLiteBackend(path, busy_timeout=0) as backend:
            await backend.publish("k", {})
            with closing(lock(path)):
                assert len(await backend.peek()) == 1
                assert (await backend.stats()).total("ready") == 1
                assert await backend.groups() == []
                assert await backend.dead_letters() == []
                await backend.ping()

    asyncio.run(use())


# -- damage while in use -------------------------------------------------------------------


def test_damage_while_in_use_is_said_and_not_retried_for_ever(path: Path) -> None:
    async def use() -> None:
        async with SQLiteBackend(path) as backend:
            await backend.publish("k", {})
            with closing(sqlite3.connect(path, isolation_level=None)) as c:
                c.execute("DROP TABLE entries")
            with pytest.raises(PublishError) as caught:
                await backend.publish("k", {})
            assert not caught.value.retryable
            with pytest.raises(ConfigurationError, match="is damaged"):
                await backend.peek()
            with pytest.raises(ConfigurationError, match="is damaged"):
                async with backend.consume() as stream:
                    await anext(stream)

    asyncio.run(use())


def test_a_ping_that_takes_too_long_says_so(path: Path) -> None:
    async def use() -> None:
        async with SQLiteBackend(path) as backend:
            await backend.ping()
            gate = asyncio.Event()
            loop = asyncio.get_running_loop()

            def block(c: sqlite3.Connection) -> None:
                asyncio.run_coroutine_threadsafe(gate.wait(), loop).result()

            blocking = asyncio.ensure_future(backend._worker.run(block, mode=Mode.READ))
            await asyncio.sleep(0)
            with pytest.raises(ConnectionLostError, match="did not answer"):
                await backend.ping(timeout=0.05)
            gate.set()
            await blocking

    asyncio.run(use())
