"""The file of the SQLite backend: made, migrated, refused, replaced."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from abe.backends.message_queue.service.sqlite import SQLiteBackend, schema
from abe.errors import ConfigurationError

Snapshot = Callable[[], dict[str, bytes]]


async def publish(path: Path, number: int = 1) -> None:
    async with SQLiteBackend(path) as backend:
        await backend.publish_many([{"n": n} for n in range(number)], key="k")


async def take_all(path: Path) -> list[int]:
    async with SQLiteBackend(path) as backend, backend.consume() as stream:
        return [m["n"] for m in await stream.take(1000, 0.3)]


def edit(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as c:
        for statement in statements:
            c.execute(statement)


def refusal(path: Path) -> str:
    async def use() -> None:
        async with SQLiteBackend(path) as backend:
            await backend.publish("k", {})

    with pytest.raises(ConfigurationError) as caught:
        asyncio.run(use())
    return str(caught.value)


def test_file_and_folders_are_made_at_first_use_and_left_tidy(tmp_path: Path) -> None:
    path = tmp_path / "not" / "yet" / "q.sqlite3"
    backend = SQLiteBackend(path)
    assert not path.parent.exists()

    async def use() -> None:
        async with backend:
            await backend.publish("k", {})
            assert {p.name for p in path.parent.iterdir()} > {path.name}

    asyncio.run(use())
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    with closing(sqlite3.connect(path)) as c:
        assert c.execute("PRAGMA user_version").fetchone() == (schema.VERSION,)
        assert c.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_an_empty_file_becomes_a_queue(path: Path) -> None:
    path.touch()
    asyncio.run(publish(path))
    assert asyncio.run(take_all(path)) == [0]


def foreign(path: Path) -> None:
    edit(path, "CREATE TABLE theirs (x)", "INSERT INTO theirs VALUES (1)")


def foreign_with_log(path: Path) -> None:
    """As their program leaves it when it is killed: part of it in the log only."""
    with closing(sqlite3.connect(path, isolation_level=None)) as c:
        c.execute("CREATE TABLE theirs (x)")
        c.execute("PRAGMA journal_mode = WAL")
        c.execute("INSERT INTO theirs VALUES (1)")
        kept = {p: p.read_bytes() for p in path.parent.iterdir() if not p.name.endswith("-shm")}
    for p, content in kept.items():
        p.write_bytes(content)


def newer(path: Path) -> None:
    edit(
        path,
        f"PRAGMA application_id = {schema.APPLICATION_ID}",
        f"PRAGMA user_version = {schema.VERSION + 1}",
        "CREATE TABLE messages (everything)",
    )


def truncated(path: Path) -> None:
    asyncio.run(publish(path, 500))
    os.truncate(path, path.stat().st_size // 2)


def damaged(path: Path) -> None:
    asyncio.run(publish(path, 500))
    content = bytearray(path.read_bytes())
    page = len(content) // 4096 - 2
    content[page * 4096 : page * 4096 + 100] = b"\xff" * 100
    path.write_bytes(content)


def damaged_with_log(path: Path) -> None:
    """As a crash leaves it: with commits that are in the log only."""
    asyncio.run(publish(path, 500))
    with closing(sqlite3.connect(path, isolation_level=None)) as c:
        c.execute("INSERT INTO groups VALUES (1, 'g', 0, NULL, 0)")
        log = path.with_name(path.name + "-wal")
        kept = log.read_bytes()
    damaged_page = bytearray(path.read_bytes())
    damaged_page[8192:8292] = b"\xff" * 100
    path.write_bytes(damaged_page)
    log.write_bytes(kept)


def text(path: Path) -> None:
    path.write_text("my notes\n")


def zeros(path: Path) -> None:
    path.write_bytes(bytes(10_000))


def noise(path: Path) -> None:
    path.write_bytes(os.urandom(10_000))


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (foreign, "a database of another program"),
        (foreign_with_log, "a database of another program"),
        (newer, r"newer abe \(schema"),
        (truncated, "is corrupt"),
        (damaged, "is corrupt"),
        (damaged_with_log, "is corrupt"),
        (text, "not a SQLite database"),
        (zeros, "not a SQLite database"),
        (noise, "not a SQLite database"),
    ],
)
def test_what_is_not_ours_or_is_broken_is_refused_and_left_as_it_is(
    path: Path, snapshot: Snapshot, make: Callable[[Path], Any], problem: str
) -> None:
    make(path)
    before = snapshot()
    assert before[path.name]
    with pytest.raises(ConfigurationError, match=problem) as caught:
        asyncio.run(publish(path))
    assert "left untouched" in str(caught.value)
    assert str(path) in str(caught.value)
    after = snapshot()
    if make is damaged_with_log:  # what the log says can only be read with its index
        after.pop(path.name + "-shm")
    assert after == before


def test_a_folder_or_a_pipe_is_refused(tmp_path: Path) -> None:
    assert "is the folder" in refusal(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        assert "not a regular file" in refusal(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"path": ":memory:"}, "must be the path of a file"),
        ({"path": "~no-such-user/queue"}, "^path is '~no-such-user/queue'; there is no"),
        ({"path": "file:x?mode=ro"}, "must be the path of a file"),
        ({"path": ""}, "must be the path of a file"),
        ({"path": "x", "lease": 0}, "^lease is 0; "),
        ({"path": "x", "busy_timeout": -1}, "^busy_timeout is -1; "),
        ({"path": "x", "synchronous": "OFF"}, "FULL or NORMAL"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        SQLiteBackend(**arguments)


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    assert SQLiteBackend.from_env().path == Path.cwd() / ".abe" / "queue.sqlite3"
    monkeypatch.setenv("ABE_SQLITE_PATH", str(path))
    monkeypatch.setenv("ABE_SQLITE_LEASE", "7")
    monkeypatch.setenv("ABE_SQLITE_SYNCHRONOUS", "normal")
    backend = SQLiteBackend.from_env()
    assert (backend.path, backend.capabilities.lease) == (path, 7)

    async def level() -> Any:
        async with backend:
            return await backend._worker.run(lambda c: c.execute("PRAGMA synchronous").fetchone())

    assert asyncio.run(level()) == (1,)
    monkeypatch.setenv("ABE_SQLITE_LEASE", "soon")
    with pytest.raises(ConfigurationError, match="ABE_SQLITE_LEASE"):
        SQLiteBackend.from_env()


# -- versions ------------------------------------------------------------------------------


def test_a_file_that_was_marked_and_not_filled_is_migrated(path: Path) -> None:
    edit(path, f"PRAGMA application_id = {schema.APPLICATION_ID}", "VACUUM")
    asyncio.run(publish(path))
    assert asyncio.run(take_all(path)) == [0]


def test_newer_only_in_the_log_is_refused_too(path: Path, snapshot: Snapshot) -> None:
    asyncio.run(publish(path))
    with closing(sqlite3.connect(path, isolation_level=None)) as c:
        c.execute("PRAGMA user_version = 99")
        before = snapshot()
        assert "newer abe" in refusal(path)
        after = snapshot()
    for name in (path.name, path.name + "-wal"):
        assert after[name] == before[name]


# -- several at once -----------------------------------------------------------------------


def test_processes_that_create_the_file_at_once_share_it(
    path: Path, child: Callable[..., Any]
) -> None:
    script = """
async def main():
    backend = SQLiteBackend(sys.argv[1])
    say("ready"), hear()
    for n in range(20):
        await backend.publish("k", {"n": n})
    await backend.aclose()
asyncio.run(main())
"""
    children = [child(script, path) for _ in range(6)]
    for one in children:
        assert one.hear() == "ready"
    for one in children:
        one.say()
    for one in children:
        one.end()
    assert sorted(asyncio.run(take_all(path))) == sorted([*range(20)] * 6)


def test_threads_that_create_the_file_at_once_share_it(path: Path) -> None:
    gate = threading.Barrier(8)
    failures: list[BaseException] = []

    def create() -> None:
        try:
            gate.wait(10)
            asyncio.run(publish(path))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert asyncio.run(take_all(path)) == [0] * 8


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX locks")
def test_opening_once_more_does_not_drop_the_locks_of_this_process(
    path: Path, locked: Callable[[], str]
) -> None:
    # With POSIX locks, closing any descriptor of a file drops every lock of the process on it.
    # Another process that closes the file would then take itself for the last user and delete
    # the log under our feet.
    async def use() -> str:
        async with SQLiteBackend(path) as first:
            await first.publish("k", {})
            await publish(path)
            return await asyncio.to_thread(locked)

    assert asyncio.run(use()) == "locked"
    assert locked() == "free"


# -- replaced while in use -----------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="an open file cannot be deleted")
def test_a_deleted_file_is_made_anew_for_publishers_and_consumers(path: Path) -> None:
    async def use() -> list[Any]:
        async with (
            SQLiteBackend(path) as backend,
            SQLiteBackend(path) as other,
            other.consume(group="g") as stream,
        ):
            await backend.publish("k", {"n": 0})
            received = [m["n"] for m in await stream.take(1, 5)]
            for file in path.parent.glob(path.name + "*"):
                file.unlink()
            await backend.publish("k", {"n": 1})
            async with asyncio.timeout(10):
                received += [m["n"] for m in await stream.take(1)]
            return received

    assert asyncio.run(use()) == [0, 1]
    assert path.exists()
    assert asyncio.run(take_all(path)) == []
