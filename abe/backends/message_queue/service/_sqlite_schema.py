"""The file of `SQLiteBackend`: its schema, its version, and the refusal of anybody else's file."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

from abe.errors import ConfigurationError

__all__ = ["VERSION", "connect"]

APPLICATION_ID = 0x61626531
"""``abe1``: marks the file as ours, so that nobody else's database is written to by mistake."""
QUICK_CHECK_BYTES = 64 * 2**20
"""Files up to this size are checked whole on opening; larger ones would make opening slow."""

_MIGRATIONS = (
    """
    CREATE TABLE messages (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL, key TEXT NOT NULL, body TEXT NOT NULL, headers TEXT,
        time REAL NOT NULL, visible REAL NOT NULL
    );
    -- `name` is '' for the default group. Messages up to `cursor` have been looked at: those the
    -- group has not settled are in `pending`.
    CREATE TABLE groups (gid INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE,
        cursor INTEGER NOT NULL);
    -- due = 0: ready. token NULL, due > 0: delayed until then. token set: leased until `due`.
    CREATE TABLE pending (
        gid INTEGER NOT NULL, seq INTEGER NOT NULL, key TEXT NOT NULL,
        due REAL NOT NULL, attempts INTEGER NOT NULL, token INTEGER,
        PRIMARY KEY (gid, seq)
    ) WITHOUT ROWID;
    -- Partial, so that leasing and settling, the common path, maintain no index.
    CREATE INDEX ready ON pending (gid, key, seq) WHERE due = 0;
    CREATE INDEX delayed ON pending (gid, due) WHERE due > 0 AND token IS NULL;
    CREATE TABLE dead (
        gid INTEGER NOT NULL, seq INTEGER NOT NULL,
        id TEXT NOT NULL, key TEXT NOT NULL, body TEXT NOT NULL, headers TEXT,
        time REAL NOT NULL, attempts INTEGER NOT NULL, dead_headers TEXT NOT NULL,
        PRIMARY KEY (gid, seq)
    ) WITHOUT ROWID;
    """,
)
"""Each script brings a file from the version that is its index to the next."""

VERSION = len(_MIGRATIONS)


def connect(path: Path, *, synchronous: str, busy_timeout: float) -> sqlite3.Connection:
    """Open the queue file, creating or migrating it.

    Raises:
        ConfigurationError: If the file is corrupt, not ours, or from a newer version; it is then
            left untouched.
        OSError: If its folder cannot be created.
        sqlite3.Error: If it cannot be opened or written.
    """
    deadline = time.monotonic() + busy_timeout
    while True:
        try:
            return _open(path, synchronous, busy_timeout)
        except sqlite3.OperationalError as error:
            # Switching to WAL does not wait for another process that is just creating the file.
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _open(path: Path, synchronous: str, busy_timeout: float) -> sqlite3.Connection:
    _refuse_foreign(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(
        path, timeout=busy_timeout, isolation_level=None, check_same_thread=False
    )
    try:
        _check(connection, path)
        # Before WAL, so that the mark of ownership is in the file itself and not only in its log.
        _migrate(connection)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {synchronous}")
    except BaseException:
        connection.close()
        raise
    return connection


def _refuse_foreign(path: Path) -> None:
    """Look at the header only: opening a database with SQLite may already change its folder."""
    problem = _foreign(path)
    for _ in range(4):
        if not problem:
            return
        time.sleep(0.05)  # another process may be creating the file at this moment
        problem = _foreign(path)
    if problem:
        raise ConfigurationError(problem)


def _foreign(path: Path) -> str:
    try:
        with path.open("rb") as file:
            header = file.read(100)
    except FileNotFoundError:
        return ""
    except IsADirectoryError:
        return f"ABE_SQLITE_PATH is the folder {path}; name a file"
    if not header:
        return ""
    if not header.startswith(b"SQLite format 3\0") or len(header) < 100:
        return f"{path} is not a SQLite database; it was left untouched"
    if int.from_bytes(header[68:72], "big") != APPLICATION_ID:
        return (
            f"{path} is a database of another program; it was left untouched. Give ABE_SQLITE_PATH"
            " a file of its own"
        )
    return ""


def _check(connection: sqlite3.Connection, path: Path) -> None:
    version, problem = 0, "ok"
    try:
        version = int(connection.execute("PRAGMA user_version").fetchone()[0])
        size = path.stat().st_size
        if version and size <= QUICK_CHECK_BYTES:
            problem = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError as error:
        problem = str(error)
    if problem != "ok":
        raise ConfigurationError(
            f"{path} is corrupt ({problem}); it was left untouched. Restore a copy, or move it away"
            " to start anew"
        )
    if version > VERSION:
        raise ConfigurationError(
            f"{path} was written by a newer abe (schema {version}, this one knows {VERSION}); "
            "upgrade abe"
        )


def _migrate(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = int(connection.execute("PRAGMA user_version").fetchone()[0])
        for script in _MIGRATIONS[version:]:
            for statement in script.split(";"):
                connection.execute(statement)
        if version < VERSION:
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
