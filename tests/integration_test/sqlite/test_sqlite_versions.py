"""Files of older versions: nothing in them is lost, and their processes change nothing any more.

``versions/`` holds files as the versions wrote them: one dead letter, one message that is held
back after a failure, one to be redelivered, one acked by the first of two groups, one in flight,
one scheduled and one that nobody has looked at.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from abe.backends.message_queue.service.sqlite import SQLiteBackend, schema

VERSIONS = Path(__file__).parent / "versions"
TEXT = 'Zürich "quoted" \\ \u2028 😀'


@pytest.fixture(params=["1", "2"])
def old(path: Path, request: pytest.FixtureRequest) -> Path:
    """A file of an older version, as if it had just been written."""
    script = (VERSIONS / f"{request.param}.sql").read_text(encoding="utf-8")
    with closing(sqlite3.connect(path, isolation_level=None)) as c:
        c.executescript("PRAGMA journal_mode = WAL")
        c.executescript(script)
        c.execute("UPDATE leased SET due = ?", (time.time() + 600,))
        c.execute("UPDATE delayed SET due = ?", (time.time() + 600,))
        c.execute("UPDATE messages SET visible = ? WHERE visible > 0", (time.time() + 600,))
    return path


def run(path: Path, main: Callable[[SQLiteBackend], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(30), SQLiteBackend(path) as backend:
            await main(backend)

    asyncio.run(limited())


async def take(backend: SQLiteBackend, number: int, group: str | None) -> list[tuple[int, int]]:
    async with backend.consume(group=group) as stream:
        return [(m["n"], m.attempt) for m in await stream.take(number, 10)]


def test_everything_is_where_it_was(old: Path) -> None:
    async def main(backend: SQLiteBackend) -> None:
        stats = await backend.stats()
        assert {
            (e.group, e.key): (e.ready, e.in_flight, e.delayed, e.dead) for e in stats.entries
        } == {
            (None, "orders.eu"): (0, 0, 0, 1),
            (None, "orders.us"): (1, 0, 1, 0),
            (None, "other"): (0, 1, 0, 0),
            (None, "orders.later"): (0, 0, 1, 0),
            (None, "orders.new"): (1, 0, 0, 0),
            ("audit", "orders.us"): (3, 0, 0, 0),
            ("audit", "other"): (1, 0, 0, 0),
            ("audit", "orders.later"): (0, 0, 1, 0),
            ("audit", "orders.new"): (1, 0, 0, 0),
        }
        assert await take(backend, 2, None) == [(3, 2), (7, 1)]
        backend.advance_time(700)
        assert await take(backend, 3, None) == [(2, 2), (5, 2), (6, 1)]
        assert await take(backend, 6, "audit") == [(n, 1) for n in (2, 3, 4, 5, 6, 7)]
        (dead,) = await backend.dead_letters()
        assert dead["text"] == TEXT
        assert dead.headers["abe-dead-reason"] == "bad"
        assert await backend.replay() == 1
        async with backend.consume() as stream:
            (again,) = await stream.take(1, 10)
        assert (again["text"], again.key, again.id) == (TEXT, "orders.eu", dead.id)
        assert dict(again.headers) == {"trace": 'x"y', "ü": "ö"}
        await backend.publish("after", {"n": 8})
        assert (await take(backend, 1, None), await take(backend, 1, "audit")) == ([(8, 1)],) * 2

    run(old, main)


def test_payloads_and_times_are_exact(old: Path) -> None:
    with closing(sqlite3.connect(old)) as c:
        (written,) = c.execute("SELECT time FROM messages WHERE key = 'other'").fetchone()

    async def main(backend: SQLiteBackend) -> None:
        (message,) = await backend.peek("other", group="audit")
        assert message == {"n": 5, "float": 0.1, "big": 2**60, "deep": [{"a": [None, True]}]}
        assert message.timestamp is not None
        assert abs(message.timestamp.timestamp() - written) < 1e-5

    run(old, main)


def test_scheduled_messages_can_be_found_by_their_id(old: Path) -> None:
    async def main(backend: SQLiteBackend) -> None:
        await backend.publish("k", {}, delay=500)
        await backend.publish("k", {})
        query = (
            "SELECT key, until = visible, id = json_extract(content, '$[0]') FROM ids JOIN entries"
            " USING (seq) ORDER BY until"
        )
        found = await backend._worker.run(lambda c: c.execute(query).fetchall())
        assert found == [("k", 1, 1), ("orders.later", 1, 1)]
        backend.advance_time(1000)
        await backend.publish("k", {}, delay=500)  # the others are due
        assert len(await backend._worker.run(lambda c: c.execute(query).fetchall())) == 1

    run(old, main)


def test_a_conversion_that_fails_changes_nothing(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main(backend: SQLiteBackend) -> None:
        await take(backend, 6, "audit")

    with monkeypatch.context() as patch:
        patch.setattr(schema, "CONVERSION", (*schema.CONVERSION[:-1], "THIS IS NOT SQL"))
        with pytest.raises(Exception, match="syntax error"):
            run(old, main)
    run(old, main)


OLD_STATEMENTS = (
    "INSERT INTO messages (id, key, body, headers, time, visible) VALUES ('x', 'k', '{}', 0, 0, 0)",
    "SELECT (SELECT cursor FROM groups) < (SELECT coalesce(max(seq), 0) FROM messages)",
    "SELECT count(*) FROM leased WHERE gid = 1 AND seq BETWEEN 1 AND 2 AND token = 3",
    "UPDATE leased SET due = 0 WHERE gid = 1 AND seq = 1 AND token = 1",
    "DELETE FROM leased WHERE gid = 1 AND seq BETWEEN 1 AND 2",
    "DELETE FROM messages WHERE seq BETWEEN 1 AND 2",
    "INSERT INTO ready SELECT gid, seq, (SELECT key FROM messages m WHERE m.seq = t.seq), attempts"
    " FROM delayed t",
    "INSERT INTO dead SELECT 1, seq, id, key, body, headers, time, 1, '' FROM messages",
    "INSERT INTO begun SELECT gid, seq, 1 FROM leased WHERE gid = 1 AND seq = 1 AND token = 1",
)
"""What processes of the older versions write, or read before they write."""


def test_a_process_of_the_older_version_changes_nothing_any_more(old: Path) -> None:
    """It has the file open, and has compiled its statements, while another one converts it."""

    async def main(backend: SQLiteBackend) -> None:
        await backend.ping()

    with closing(sqlite3.connect(old, isolation_level=None)) as c:
        working = [s for s in OLD_STATEMENTS if "begun" not in s or "begun" in tables(c)]
        for statement in working:
            c.execute("BEGIN")
            c.execute(statement)
            c.execute("ROLLBACK")
        run(old, main)
        for statement in working:
            with pytest.raises(sqlite3.OperationalError, match=r"restart|no such column"):
                c.execute(statement)
        with pytest.raises(sqlite3.OperationalError, match="newer abe: restart with that version"):
            c.execute(OLD_STATEMENTS[0])
    run(old, main)


def tables(c: sqlite3.Connection) -> set[str]:
    return {name for (name,) in c.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def test_processes_that_convert_a_file_at_once_share_it(
    old: Path, child: Callable[..., Any]
) -> None:
    script = """
async def main():
    async with SQLiteBackend(sys.argv[1]) as backend:
        hear()
        async with backend.consume(group="audit") as stream:
            say(*[m["n"] for m in await stream.take(6, 0.5)])
asyncio.run(main())
"""
    children = [child(script, old) for _ in range(3)]
    for one in children:
        one.say()
    taken = [n for one in children for n in one.end().split()]
    assert sorted(taken) == ["2", "3", "4", "5", "7"]
