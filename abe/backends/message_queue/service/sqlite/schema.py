"""The file of `SQLiteBackend`: its format, and the refusal of anybody else's file.

``PRAGMA application_id`` marks the file as ours and ``user_version`` says which format it has. An
older file is converted when it is opened, in one transaction; a newer one is refused.

- ``entries``: what was published, until every group has settled it. ``content`` is a JSON array,
  ``[id, time of publishing, headers or null, payload]``, so that a batch is one text, read and
  decoded at once. ``visible``: 0 = at once, else not before. NULL = put back for one group by a
  replay: it is reached through the row of that group, and is no news to any other.
- ``groups``: ``name`` is '' for the default group. ``gid`` is random, so that a stream of a deleted
  group cannot mistake a later one for its own. What the group has not settled of the entries up to
  ``cursor`` is in ``ready``, ``leased`` or ``delayed``; those after it are new to it. ``keys``: the
  JSON array of the patterns to which the group is limited, NULL = none. What does not match them
  enters none of the three tables. ``opened``: when a consumer last came, to about an hour.
- ``ready``, ``delayed``: a row for each message, with how often it was delivered.
- ``leased``: a row for each run of consecutive entries that were leased together and are not
  settled. ``token`` is new for every claim and proves ownership. ``attempts`` counts this delivery.
- ``begun``: how often the handling of a message has begun; only suspects have a row.
- ``dead``: dead letters in the order of their deaths, each with a copy of the entry.
- ``ids``: by which id an entry can be found until when. Those of scheduled messages are kept until
  they are due, ids given by a caller for as long as they are recognised.
- ``clock``: one row, since when the machine runs, and what time it was then.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from abe.errors import ConfigurationError

__all__ = ["VERSION", "QueueConnection", "connect", "primary_code"]

APPLICATION_ID = 0x61626531
"""``abe1``."""
VERSION = 3
QUICK_CHECK_BYTES = 32 * 2**20
"""Files up to this size are checked whole on opening; larger ones would make opening slow."""
LOG_BYTES = 16 * 2**20
"""A longer log, the work of a big backlog or of somebody's long read, is cut to this."""
SETTLING_SECONDS = 0.05

TABLES = (
    """CREATE TABLE IF NOT EXISTS entries (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        key TEXT NOT NULL, visible REAL, content TEXT NOT NULL
    )""",
    """CREATE TABLE IF NOT EXISTS groups (
        gid INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, cursor INTEGER NOT NULL,
        keys TEXT, opened REAL NOT NULL DEFAULT 0
    )""",
    """CREATE TABLE IF NOT EXISTS ready (
        gid INTEGER NOT NULL, seq INTEGER NOT NULL, key TEXT NOT NULL, attempts INTEGER NOT NULL,
        PRIMARY KEY (gid, seq)
    ) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS ready_by_key ON ready (gid, key, seq)",
    # No index by `due`: there are only as many rows as consumers hold messages.
    """CREATE TABLE IF NOT EXISTS leased (
        gid INTEGER NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL,
        token INTEGER NOT NULL, due REAL NOT NULL, attempts INTEGER NOT NULL,
        PRIMARY KEY (gid, first)
    ) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS delayed (
        gid INTEGER NOT NULL, seq INTEGER NOT NULL, due REAL NOT NULL, attempts INTEGER NOT NULL,
        PRIMARY KEY (gid, seq)
    ) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS delayed_by_due ON delayed (gid, due)",
    """CREATE TABLE IF NOT EXISTS begun (
        gid INTEGER NOT NULL, seq INTEGER NOT NULL, number INTEGER NOT NULL, PRIMARY KEY (gid, seq)
    ) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS dead (
        gid INTEGER NOT NULL, seq INTEGER NOT NULL, id TEXT NOT NULL, key TEXT NOT NULL,
        content TEXT NOT NULL, attempts INTEGER NOT NULL, headers TEXT NOT NULL,
        PRIMARY KEY (gid, seq)
    )""",
    "CREATE INDEX IF NOT EXISTS dead_by_age ON dead (gid)",
    """CREATE TABLE IF NOT EXISTS ids (
        id TEXT PRIMARY KEY, seq INTEGER NOT NULL, until REAL NOT NULL
    ) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS ids_by_end ON ids (until)",
    "CREATE TABLE IF NOT EXISTS clock (boot TEXT NOT NULL, start REAL NOT NULL)",
)
"""What a new file is made of."""

_CONTENT = (
    "'[\"' || id || '\",' || printf('%.6f', time) || ',' || coalesce(headers, 'null') || ','"
    " || body || ']'"
)
CONVERSION = (
    "ALTER TABLE leased RENAME TO old_leased",
    "ALTER TABLE dead RENAME TO old_dead",
    "DROP INDEX IF EXISTS dead_by_age",
    "ALTER TABLE groups ADD COLUMN keys TEXT",
    "ALTER TABLE groups ADD COLUMN opened REAL NOT NULL DEFAULT 0",
    *TABLES,
    f"INSERT INTO entries SELECT seq, key, visible, {_CONTENT} FROM messages",  # noqa: S608
    # The number that follows is not to be one that was used before.
    "INSERT INTO sqlite_sequence SELECT 'entries', 0"
    " WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = 'entries')",
    "UPDATE sqlite_sequence SET seq = (SELECT max(seq) FROM sqlite_sequence"
    " WHERE name IN ('entries', 'messages')) WHERE name = 'entries'",
    "INSERT INTO leased SELECT gid, seq, seq, token, due, attempts FROM old_leased",
    f"INSERT INTO dead SELECT gid, seq, id, key, {_CONTENT}, attempts, dead_headers"  # noqa: S608
    " FROM old_dead ORDER BY rowid",
    "UPDATE groups SET opened = strftime('%s', 'now')",
    "INSERT OR IGNORE INTO ids SELECT id, seq, visible FROM messages WHERE visible > 0",
    "DROP TABLE messages",
    "DROP TABLE old_leased",
    "DROP TABLE old_dead",
    # A process of the older version that has the file open fails with this text.
    'CREATE VIEW messages AS SELECT * FROM "the file of a newer abe: restart with that version"',
)
"""What brings a file of version 1 or 2 to this one."""


def _boot_id() -> str:
    """Return what identifies this run of the machine; empty if the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


BOOT = _boot_id()


class QueueConnection(sqlite3.Connection):
    """A connection to a queue file, and the clock of its leases and delays.

    While a machine runs its processes count from the time that was noted when the first of them
    opened the file, so setting the wall clock ends no lease and holds no delay. Where the system
    does not say when it was started, the wall clock has to do.
    """

    start = 0.0

    def now(self) -> float:
        return self.start + (time.clock_gettime(time.CLOCK_BOOTTIME) if BOOT else time.time())

    def set_clock(self) -> None:
        """Find out, or note, what time it was when the machine was started."""
        if not BOOT:
            return
        noted = "SELECT start FROM clock WHERE boot = ?"
        found = self.execute(noted, (BOOT,)).fetchone()
        if found is None:
            with _transaction(self):
                found = self.execute(noted, (BOOT,)).fetchone()
                if found is None:
                    found = (time.time() - self.now(),)
                    self.execute("DELETE FROM clock")
                    self.execute("INSERT INTO clock VALUES (?, ?)", (BOOT, *found))
        (self.start,) = found


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def primary_code(error: BaseException) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def connect(path: Path) -> QueueConnection:
    """Open the queue file, creating or migrating it; waits for no lock.

    Raises:
        ConfigurationError: If the file is corrupt, not ours, or newer; it is then left untouched.
        PermissionError: If it, its log or its folder may not be read and written.
        OSError: If its folder cannot be created or read.
        sqlite3.Error: If it cannot be opened or written; `sqlite3.SQLITE_BUSY`: not yet.
    """
    _refuse(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _check_access(path)
    connection = sqlite3.connect(
        path, timeout=0, isolation_level=None, check_same_thread=False, factory=QueueConnection
    )
    try:
        _migrate(connection, path)
        # After the tables, so that the mark of ownership is in the file and not only in its log.
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise ConfigurationError(
                f"the file system of {path} cannot share memory between processes, which the"
                " write-ahead log needs; give ABE_SQLITE_PATH a file on a local disk"
            )
        connection.execute(f"PRAGMA journal_size_limit = {LOG_BYTES}")
        connection.execute("PRAGMA fullfsync = ON")  # without it a Mac's disk may keep a commit
        connection.set_clock()
    except BaseException:
        connection.close()
        raise
    return connection


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    if _marks(connection) == (APPLICATION_ID, VERSION):
        return
    with _transaction(connection):
        owner, version = _marks(connection)
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if problem := _not_ours(path, owner, version, empty=not tables):
            raise ConfigurationError(problem)
        for statement in CONVERSION if version else TABLES:
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {VERSION}")


def _marks(connection: sqlite3.Connection) -> tuple[int, int]:
    (owner,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return owner, version


def _not_ours(path: Path, owner: int, version: int, *, empty: bool = False) -> str:
    if owner != APPLICATION_ID and not (empty and owner == version == 0):
        return (
            f"{path} is a database of another program; it was left untouched. Give ABE_SQLITE_PATH"
            " a file of its own"
        )
    if version > VERSION:
        return (
            f"{path} was written by a newer abe (schema {version}, this one knows {VERSION}); it"
            " was left untouched. Upgrade abe"
        )
    return ""


# -- looking before touching ---------------------------------------------------------------


def _refuse(path: Path) -> None:
    """Raise for a file that is not to be opened; looks in ways that write nothing."""
    problem = _problem(path)
    for _ in range(4):
        if not problem:
            return
        time.sleep(SETTLING_SECONDS)  # somebody may be creating or writing it at this moment
        problem = _problem(path)
    if problem:
        raise ConfigurationError(problem)


def _check_access(path: Path) -> None:
    """Raise for files that SQLite could only read, or not even that: it does not say so itself."""
    log = path.with_name(path.name + "-wal")
    needed = [path if path.exists() else path.parent, log if log.exists() else path.parent]
    for file in needed:
        mode = os.R_OK | os.W_OK | (os.X_OK if file.is_dir() else 0)
        if not os.access(file, mode, effective_ids=os.access in os.supports_effective_ids):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))


def _problem(path: Path) -> str:
    try:
        status = path.stat()
    except FileNotFoundError:
        return ""
    if stat.S_ISDIR(status.st_mode):
        return f"ABE_SQLITE_PATH is the folder {path}; name a file"
    if not stat.S_ISREG(status.st_mode):
        return f"{path} is not a regular file; give ABE_SQLITE_PATH a file of its own"
    if not status.st_size:
        return ""
    whole = status.st_size <= QUICK_CHECK_BYTES
    if _has(path, "-wal") or _has(path, "-journal"):
        # What is in the log or journal belongs to the file: alone it may be half a change.
        return _judge(path, "immutable=1", check=False, partial=True) or (
            _judge(path, "mode=ro", check=whole, partial=True) if _has(path, "-wal") else ""
        )
    return _judge(path, "immutable=1", check=whole)


def _has(path: Path, suffix: str) -> bool:
    try:
        return path.with_name(path.name + suffix).stat().st_size > 0
    except OSError:
        return False


def _judge(path: Path, option: str, *, check: bool, partial: bool = False) -> str:
    """Look at the file through SQLite, read-only; returns what is wrong with it.

    Through SQLite, because reading a database in any other way would drop, as POSIX has it, the
    locks that this process may hold on it. And read-only, because a normal connection to a corrupt
    file may write to it when it is closed. ``immutable=1`` leaves no trace, ``mode=ro`` also reads
    the log; ``partial``: the file may be in the middle of a change.
    """
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?{option}", uri=True, timeout=0)) as c:
            owner, version = _marks(c)
            problem = _not_ours(path, owner, version)
            if problem or not check:
                return problem
            (verdict,) = c.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.Error as error:
        code = primary_code(error)
        if code == sqlite3.SQLITE_NOTADB:
            return f"{path} is not a SQLite database; it was left untouched"
        if code != sqlite3.SQLITE_CORRUPT or (partial and option == "immutable=1"):
            return ""  # opening it will say what is wrong
        verdict = str(error)
    if verdict == "ok":
        return ""
    first, *_ = str(verdict).removeprefix("*** in database main ***").strip().splitlines() or [""]
    return (
        f"{path} is corrupt ({first}); it was left untouched. Restore a copy, or move it away to"
        " start anew"
    )
