"""What only the SQLite backend can get wrong: gone groups, lost claims, clocks, the log's size."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from abe.backends.message_queue.base import Delivery, KeyFilter, Message, Outcome, Settlement
from abe.backends.message_queue.service.sqlite import SQLiteBackend, settling, store
from abe.backends.message_queue.service.sqlite import schema as _sqlite_schema
from abe.backends.message_queue.service.sqlite.worker import Mode
from abe.errors import ConfigurationError


def run(path: Path, main: Callable[[SQLiteBackend], Awaitable[None]], **options: Any) -> None:
    async def limited() -> None:
        async with asyncio.timeout(30), SQLiteBackend(path, **options) as backend:
            await main(backend)

    asyncio.run(limited())


def size_of_log(path: Path) -> int:
    return path.with_name(path.name + "-wal").stat().st_size


async def take(backend: SQLiteBackend, count: int, group: str | None = None) -> list[Any]:
    async with backend.consume(group=group) as stream:
        return [message["n"] for message in await stream.take(count, 10)]


async def fill(backend: SQLiteBackend, number: int, key: str = "k") -> None:
    await backend.publish_many([{"n": n} for n in range(number)], key=key)


# -- groups that come and go ---------------------------------------------------------------


def test_deleting_a_group_leaves_the_other_its_messages(path: Path) -> None:
    async def main(backend: SQLiteBackend) -> None:
        for group in ("a", "b"):
            async with backend.consume(group=group):
                pass
        await fill(backend, 3)
        await backend.delete_group("b")
        assert await take(backend, 3, "a") == [0, 1, 2]

    run(path, main)


def test_the_last_group_takes_its_backlog_with_it(path: Path) -> None:
    async def main(backend: SQLiteBackend) -> None:
        await fill(backend, 1)
        assert await take(backend, 0, "a") == []
        await backend.delete_group("a")
        await fill(backend, 2)
        assert await take(backend, 2, "b") == [0, 1]

    run(path, main)


def test_a_stream_of_a_deleted_group_takes_nothing_from_a_new_one(path: Path) -> None:
    async def main(backend: SQLiteBackend) -> None:
        async with backend.consume(group="old") as stream:
            await backend.delete_group("old")
            async with backend.consume(group="new"):
                pass
            await fill(backend, 1)
            with pytest.raises(ConfigurationError, match="group 'old' was deleted"):
                await anext(stream)
        assert await take(backend, 1, "new") == [0]

    run(path, main)


def test_settling_after_the_group_was_deleted_and_made_anew_changes_nothing(path: Path) -> None:
    async def main(backend: SQLiteBackend) -> None:
        await fill(backend, 2)
        receiver = backend._receiver("g", KeyFilter())
        await receiver.open()
        deliveries = await receiver.receive(2, 5)
        async with backend.consume(group="other"):
            await backend.delete_group("g")
        async with backend.consume(group="g"):
            pass
        settlements = [Settlement(d, Outcome.ACK) for d in deliveries]
        lost = await receiver.settle(settlements)
        assert [failure.error for failure in lost] == [None, None]
        assert await receiver.extend(deliveries, 5) == deliveries
        await receiver.aclose()
        assert await take(backend, 2, "g") == [0, 1]

    run(path, main)


def test_a_replayed_message_is_no_news_to_a_later_group(path: Path) -> None:
    async def main(backend: SQLiteBackend) -> None:
        await fill(backend, 1)
        async with backend.consume(group="a") as stream:
            await (await anext(stream)).reject("bad")
            await stream.flush()
            async with backend.consume(group="b") as other:
                assert await backend.replay(group="a") == 1
                assert await other.take(1, 0.1) == []
                assert await backend.peek(group="b") == []
                again = await anext(stream)
                assert (again["n"], again.attempt, dict(again.headers)) == (0, 1, {})

    run(path, main)


def test_a_dead_letter_says_why_and_how_often(path: Path) -> None:
    async def main(backend: SQLiteBackend) -> None:
        await backend.publish("orders.eu", {"n": 1}, headers={"trace": "x", "ü": "ö"})
        async with backend.consume() as stream:
            await (await anext(stream)).nack()
            message = await anext(stream)
            await message.reject("ValueError: no\nFile …, line 3")
            await stream.flush()
        (dead,) = await backend.dead_letters()
        assert (dead, dead.id, dead.key, dead.attempt) == ({"n": 1}, message.id, "orders.eu", 2)
        headers = dict(dead.headers)
        assert float(headers.pop("abe-dead-time")) > 0
        assert headers == {
            "trace": "x",
            "ü": "ö",
            "abe-dead-reason": "ValueError: no",
            "abe-dead-traceback": "File …, line 3",
            "abe-dead-attempts": "2",
            "abe-dead-id": message.id,
            "abe-dead-key": "orders.eu",
        }
        assert await backend.replay(ids="another") == 0
        assert await backend.replay(limit=-1) == 0
        assert await backend.replay(ids=[str(message.id)]) == 1
        assert await backend.dead_letters(limit=10**30) == []

    run(path, main)


def test_limits_of_any_size_are_fine(path: Path) -> None:
    async def main(backend: SQLiteBackend) -> None:
        await fill(backend, 2)
        assert len(await backend.peek(limit=10**30)) == 2
        assert await backend.peek(limit=-1) == []
        assert await backend.dead_letters(limit=-1) == []

    run(path, main)


# -- publishing together -------------------------------------------------------------------


def test_those_who_publish_at_once_share_a_commit_again_and_again(path: Path) -> None:
    async def main(backend: SQLiteBackend) -> None:
        seen: list[str] = []
        await backend._worker.run(lambda c: c.set_trace_callback(seen.append))

        async def publisher(first: int) -> None:
            for n in range(first, first + 20):
                await backend.publish("k", {"n": n})

        await asyncio.gather(*(publisher(100 * n) for n in range(20)))
        assert seen.count("COMMIT") - 1 == 21  # the first call goes alone
        assert len(await backend.peek(limit=1000)) == 400

    run(path, main)


def test_who_is_cancelled_before_the_next_commit_begins_publishes_nothing(path: Path) -> None:
    async def main(backend: SQLiteBackend) -> None:
        publishing = [asyncio.ensure_future(backend.publish("k", {"n": n})) for n in range(3)]
        await asyncio.sleep(0)
        publishing[1].cancel()
        await asyncio.wait(publishing)
        assert [task.cancelled() for task in publishing] == [False, True, False]
        assert [m["n"] for m in await backend.peek()] == [0, 2]

    run(path, main)


# -- claims that nobody receives -----------------------------------------------------------


def test_what_a_cancelled_receive_was_about_to_get_is_given_back(path: Path) -> None:
    async def main(backend: SQLiteBackend) -> None:
        await fill(backend, 5)
        receiver = backend._receiver(None, KeyFilter())
        await receiver.open()
        for pause in (0, 0, 0.0005, 0.001, 0.002):
            receiving = asyncio.ensure_future(receiver.receive(5, 5))
            await asyncio.sleep(pause)
            receiving.cancel()
            await asyncio.wait([receiving])
            if not receiving.cancelled():
                deliveries = receiving.result()
                await receiver.settle([Settlement(d, Outcome.RELEASE) for d in deliveries])
            again = await receiver.receive(5, 5)
            assert [(d.message["n"], d.message.attempt) for d in again] == [
                (n, 1) for n in range(5)
            ]
            await receiver.settle([Settlement(d, Outcome.RELEASE) for d in again])
        await receiver.aclose()

    run(path, main)


def test_a_cancelled_publisher_leaves_no_consumer_asleep(path: Path) -> None:
    async def main(backend: SQLiteBackend) -> None:
        async with backend.consume() as stream:
            waiting = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0.05)
            for _ in range(20):
                publishing = asyncio.ensure_future(backend.publish("k", {"n": 1}))
                await asyncio.sleep(0)
                await asyncio.sleep(0.0002)
                publishing.cancel()
                await asyncio.wait([publishing])
                if await backend.peek() or (await backend.stats()).total("in_flight"):
                    break
            else:
                await backend.publish("k", {"n": 1})
            async with asyncio.timeout(2):
                assert (await waiting)["n"] == 1

    run(path, main)


# -- time ----------------------------------------------------------------------------------


def test_a_lease_begins_when_it_is_given_not_when_it_was_asked_for(path: Path) -> None:
    async def main(backend: SQLiteBackend) -> None:
        await fill(backend, 1)
        receiver = backend._receiver(None, KeyFilter())
        await receiver.open()
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            receiving = asyncio.ensure_future(receiver.receive(1, 5))
            await asyncio.sleep(0.05)
            backend.advance_time(25)
        (delivery,) = await receiving
        backend.advance_time(25)
        assert await receiver.extend([delivery], 30) == []
        assert (await backend.stats()).total("in_flight") == 1
        await receiver.aclose()

    run(path, main, lease=30)


def test_waiting_consumers_notice_that_time_was_moved(path: Path) -> None:
    async def main(backend: SQLiteBackend) -> None:
        await backend.publish("k", {"n": 1}, delay=3600)
        async with backend.consume() as stream:
            waiting = asyncio.ensure_future(anext(stream))
            await asyncio.wait([waiting], timeout=0.05)
            assert not waiting.done()
            backend.advance_time(3601)
            async with asyncio.timeout(2):
                assert (await waiting)["n"] == 1

    run(path, main)


# -- size ----------------------------------------------------------------------------------


def test_work_does_not_grow_with_what_others_wait_for(path: Path) -> None:
    """Counts steps of SQLite's machine, which say more than times."""

    def steps(c: sqlite3.Connection, keys: KeyFilter) -> list[int]:
        """Steps of a glance, a claim of one, its settling; all rolled back."""
        counts: list[int] = []
        (gid,) = c.execute("SELECT gid FROM groups").fetchone()
        now, ticks = 1e12, [0]

        def tick() -> None:
            ticks[0] += 1

        c.set_progress_handler(tick, 1)
        c.execute("SAVEPOINT s")
        assert store.glance(c, gid, keys, now) is None
        counts.append(ticks[0])
        (claim,) = store.claim(c, gid, keys, 1, now, 30, 1).claims
        counts.append(ticks[0] - sum(counts))
        settled = [Settlement(Delivery(Message({}), claim), Outcome.ACK)]
        assert settling.settle(c, gid, settled, now) == []
        counts.append(ticks[0] - sum(counts))
        c.execute("ROLLBACK TO s")
        c.execute("RELEASE s")
        c.set_progress_handler(None, 0)
        return counts

    def look_at_all(c: sqlite3.Connection) -> None:
        (gid,) = c.execute("SELECT gid FROM groups").fetchone()
        while store.glance(c, gid, KeyFilter("none"), 0) is None:
            assert not store.claim(c, gid, KeyFilter("none"), 1, 0, 30, 1).claims

    async def main(backend: SQLiteBackend) -> None:
        async with backend.consume():
            pass
        seen = []
        for size in (500, 20_000):
            for key in range(5):
                await fill(backend, size // 5, f"others.{key}")
            await fill(backend, 1, "mine.a")
            await backend._worker.run(look_at_all)
            seen.append(
                [
                    await backend._worker.run(partial(steps, keys=KeyFilter(keys)))
                    for keys in (None, "mine.*", "*.a", ["mine.a", "theirs.**"])
                ]
            )
            await backend.purge("mine.*")
        for few, many in zip(*seen, strict=True):
            assert max(many) < 1000, (few, many)
            assert all(b < 1.5 * a + 50 for a, b in zip(few, many, strict=True)), (few, many)

    run(path, main)


def test_the_log_is_cut_again_after_a_long_read(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 200_000
    monkeypatch.setattr(_sqlite_schema, "LOG_BYTES", limit)

    async def main(backend: SQLiteBackend) -> None:
        await fill(backend, 1)
        with closing(sqlite3.connect(path, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM entries").fetchone()
            for _ in range(20):
                await backend.publish_many([{"x": "x" * 2000}] * 200, key="k")
            grown = size_of_log(path)
            assert grown > 4_000_000
        # It begins anew, and is cut, once all of it is in the file and nobody reads it.
        for _ in range(10):
            await backend.publish_many([{"x": "x" * 2000}] * 200, key="k")
        await backend._worker.run(
            lambda c: c.execute("PRAGMA wal_checkpoint").fetchall(), mode=Mode.READ
        )
        await backend.publish("k", {})
        assert size_of_log(path) < grown / 4

    run(path, main)


def test_the_log_stays_small_under_steady_use(path: Path) -> None:
    async def main(backend: SQLiteBackend) -> None:
        sizes = []

        async def produce() -> None:
            for _ in range(40):
                await backend.publish_many([{"x": "x" * 500}] * 200, key="k")
                sizes.append(size_of_log(path))

        async with SQLiteBackend(path) as other, other.consume() as stream:
            producing = asyncio.ensure_future(produce())
            received = 0
            while received < 40 * 200:
                received += len(await stream.take(200, 5))
            await producing
        assert max(sizes) < 3 * _sqlite_schema.LOG_BYTES

    run(path, main)
