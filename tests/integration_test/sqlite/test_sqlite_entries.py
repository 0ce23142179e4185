"""What stands in a queue file: entries nobody can read, handling that has begun, times."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from abe.backends.message_queue.base import Delivery, KeyFilter, Outcome, Receiver, Settlement
from abe.backends.message_queue.service.sqlite import SQLiteBackend, schema


def run(path: Path, main: Callable[[SQLiteBackend], Awaitable[None]], **options: Any) -> None:
    async def limited() -> None:
        async with asyncio.timeout(30), SQLiteBackend(path, **options) as backend:
            await main(backend)

    asyncio.run(limited())


def write(path: Path, *statements: str, parameters: tuple[object, ...] = ()) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as c:
        for statement in statements:
            c.execute(statement, parameters)


async def receiver_of(backend: SQLiteBackend, group: str | None = None) -> Receiver:
    receiver = backend._receiver(group, KeyFilter())
    await receiver.open()
    return receiver


async def settle(receiver: Receiver, delivery: Delivery, outcome: Outcome) -> None:
    assert not await receiver.settle([Settlement(delivery, outcome)])


# -- entries that cannot be decoded --------------------------------------------------------

UNREADABLE = {
    "digits": ('{"n": ' + "9" * 5000 + "}", "digits"),
    "no-object": ("[1]", "not an object"),
    "no-json": ("{", "not JSON"),
    "no-text": (b'{"n": "\xff\x1b"}', "not JSON"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_an_entry_that_cannot_be_decoded_is_set_aside(path: Path, kind: str) -> None:
    """Its neighbours are delivered, for the first time as far as anybody knows."""
    body, reason = UNREADABLE[kind]

    async def main(backend: SQLiteBackend) -> None:
        await backend.publish_many([{"n": 0}, {"n": 1}, {"n": 2}], key="k")
        content = """'["id-2",1.5,null,' || ? || ']'"""
        update = f"UPDATE entries SET content = CAST({content} AS TEXT) WHERE seq = 2"
        write(path, update, parameters=(body,))
        assert [m.get("n") for m in await backend.peek()][::2] == [0, 2]
        async with backend.consume() as stream:
            taken = await stream.take(2, 10)
            assert [(m["n"], m.attempt) for m in taken] == [(0, 1), (2, 1)]
        (dead,) = await backend.dead_letters()
        assert list(dead) == ["abe-raw"]
        assert "\x1b" not in repr(dead)
        assert reason in dead.headers["abe-dead-reason"]
        assert await backend.replay() == 1

    run(path, main)


def test_a_claim_of_nothing_but_unreadable_entries_goes_on(path: Path) -> None:
    async def main(backend: SQLiteBackend) -> None:
        await backend.publish_many([{"n": n} for n in range(5)], key="k")
        write(path, "UPDATE entries SET content = 'x' WHERE seq < 5")
        async with backend.consume(prefetch=1) as stream:
            assert [m["n"] for m in await stream.take(1, 10)] == [4]
        assert len(await backend.dead_letters()) == 4

    run(path, main)


def test_messages_too_big_to_be_read_together_are_read_one_by_one(path: Path) -> None:
    async def main(backend: SQLiteBackend) -> None:
        await backend.publish_many([{"n": n, "x": "x" * 1000} for n in range(5)], key="k")
        limit = sqlite3.SQLITE_LIMIT_LENGTH
        await backend._worker.run(lambda c: c.setlimit(limit, 3000))
        receiver = await receiver_of(backend)
        assert [d.message["n"] for d in await receiver.receive(5, 5)] == [*range(5)]
        await receiver.aclose()

    run(path, main)


# -- dead letters and handling -------------------------------------------------------------


def test_dead_letters_come_in_the_order_of_their_deaths(path: Path) -> None:
    async def main(backend: SQLiteBackend) -> None:
        await backend.publish_many([{"n": n} for n in range(4)], key="k")
        receiver = await receiver_of(backend)
        deliveries = await receiver.receive(4, 5)
        for n in (2, 0, 3, 1):
            await settle(receiver, deliveries[n], Outcome.REJECT)
        assert [m["n"] for m in await backend.dead_letters()] == [2, 0, 3, 1]
        assert await backend.replay(limit=2) == 2
        assert [m["n"] for m in await backend.dead_letters(limit=1)] == [3]
        await receiver.aclose()

    run(path, main)


def test_beginnings_are_counted_until_the_message_is_done(path: Path) -> None:
    async def main(backend: SQLiteBackend) -> None:
        await backend.publish("k", {})
        receiver, other = await receiver_of(backend), await receiver_of(backend, "other")
        counts = []
        for outcome in (Outcome.NACK, Outcome.RELEASE, Outcome.REJECT):
            (delivery,) = await receiver.receive(1, 5)
            counts.append(delivery.begun)
            await receiver.begin([delivery])  # type: ignore[attr-defined]
            await settle(receiver, delivery, outcome)
            await receiver.begin([delivery])  # type: ignore[attr-defined]  # too late to count
        assert counts == [0, 1, 2]
        assert (await other.receive(1, 5))[0].begun == 0
        await backend.replay()
        assert (await receiver.receive(1, 5))[0].begun == 0
        await receiver.aclose()
        await other.aclose()

    run(path, main)


def test_a_replay_ends_with_what_was_there(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a consumer that rejects everything again."""
    monkeypatch.setattr("abe.backends.message_queue.service.sqlite.admin.SLICE", 1)

    async def main(backend: SQLiteBackend) -> None:
        await backend.publish_many([{"n": n} for n in range(3)], key="k")
        receiver = await receiver_of(backend)

        async def reject(number: int) -> None:
            while number:
                for delivery in await receiver.receive(3, 5):
                    await settle(receiver, delivery, Outcome.REJECT)
                    number -= 1

        await reject(3)
        rejecting = asyncio.ensure_future(reject(3))
        assert await backend.replay() == 3
        await rejecting
        assert len(await backend.dead_letters()) == 3
        await receiver.aclose()

    run(path, main)


# -- time ----------------------------------------------------------------------------------

needs_boot_id = pytest.mark.skipif(not schema.BOOT, reason="the system does not name its boot")


@needs_boot_id
@pytest.mark.parametrize("step", [3600.0, -3600.0])
def test_a_step_of_the_wall_clock_moves_neither_leases_nor_delays(
    path: Path, monkeypatch: pytest.MonkeyPatch, step: float
) -> None:
    set_clock = time.time

    async def main(backend: SQLiteBackend) -> None:
        await backend.publish("held", {"n": 0})
        await backend.publish("delayed", {"n": 1}, delay=600)
        await backend.publish("soon", {"n": 2})
        receiver = await receiver_of(backend)
        _, soon = await receiver.receive(2, 5)
        monkeypatch.setattr(time, "time", lambda: set_clock() + step)
        async with SQLiteBackend(path) as other:
            assert await other.peek() == []
            assert not await receiver.settle([Settlement(soon, Outcome.NACK, 0.05)])
            assert [d.message["n"] for d in await receiver.receive(3, 20)] == [2]
        await receiver.aclose()

    run(path, main)


@needs_boot_id
def test_after_a_restart_of_the_machine_the_wall_clock_goes_on(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def publish(backend: SQLiteBackend) -> None:
        await backend.publish("k", {}, delay=600)

    async def look(backend: SQLiteBackend) -> None:
        (entry,) = (await backend.stats()).entries
        found.append((entry.delayed, entry.ready))

    found: list[tuple[int | None, int | None]] = []
    run(path, publish)
    monkeypatch.setattr(schema, "BOOT", "the next one")
    run(path, look)
    off = time.time
    monkeypatch.setattr(schema, "BOOT", "one after an hour")
    monkeypatch.setattr(time, "time", lambda: off() + 3600)
    run(path, look)
    assert found == [(1, 0), (0, 1)]
