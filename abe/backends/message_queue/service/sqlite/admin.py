"""Looking into the file and cleaning up: functions of a connection, each in a transaction."""

from __future__ import annotations

import heapq
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from abe.backends.message_queue.base import KeyFilter
from abe.backends.message_queue.service.sqlite.store import (
    OF_KEY,
    SETTLED_BY_ALL,
    Row,
    advance,
    forget,
    gid_of,
    ready,
    ready_keys,
)
from abe.errors import ConfigurationError
from abe.types import ConsumerGroup, KeyStats, QueueStats

__all__ = [
    "dead_letters",
    "delete_group",
    "group_names",
    "peek",
    "purge",
    "replay",
    "stats",
]


def peek(
    c: sqlite3.Connection, group: ConsumerGroup, keys: KeyFilter, limit: int, now: float
) -> list[tuple[Row, int]]:
    """Return (row, attempt) of what the group could take now, in publish order."""
    gid = gid_of(c, group)
    sources: list[Iterator[tuple[int, str, int]]] = []
    if gid is not None:
        sources.append(iter(ready(c, gid, keys, limit)))
        for table in ("leased", "delayed"):
            query = (
                f"SELECT seq, m.key, t.attempts FROM {table} t JOIN messages m USING (seq)"  # noqa: S608
                " WHERE t.gid = ? AND t.due <= ? ORDER BY seq"
            )
            sources.append(c.execute(query, (gid, now)))
    sources.append(
        c.execute(
            "SELECT seq, key, 0 FROM messages WHERE visible <= ? AND seq >"
            " coalesce((SELECT cursor FROM groups WHERE gid = ?), 0) ORDER BY seq",
            (now, gid),
        )
    )
    matching = (found for found in heapq.merge(*sources) if keys.matches(found[1]))
    select = "SELECT id, key, body, headers, time FROM messages WHERE seq = ?"
    return [
        (c.execute(select, (seq,)).fetchone(), attempts + 1)
        for seq, _, attempts in list(islice(matching, limit))
    ]


@dataclass(slots=True)
class _Count:
    ready: int = 0
    in_flight: int = 0
    delayed: int = 0
    dead: int = 0
    oldest: int | None = None
    """The first message neither settled nor dead."""


_COUNTS = (
    ("ready", "SELECT key, count(*), min(seq) FROM ready WHERE gid = :gid GROUP BY key"),
    ("dead", "SELECT key, count(*), NULL FROM dead WHERE gid = :gid GROUP BY key"),
    *(
        (
            name,
            f"SELECT m.key, count(*), min(seq) FROM {table} t JOIN messages m USING (seq)"  # noqa: S608
            f" WHERE t.gid = :gid AND t.due {sign} :now GROUP BY m.key",
        )
        for name, table, sign in (
            ("ready", "leased", "<="),
            ("in_flight", "leased", ">"),
            ("ready", "delayed", "<="),
            ("delayed", "delayed", ">"),
        )
    ),
    *(
        (
            name,
            "SELECT key, count(*), min(seq) FROM messages"  # noqa: S608
            f" WHERE seq > :cursor AND visible {sign} :now GROUP BY key",
        )
        for name, sign in (("ready", "<="), ("delayed", ">"))
    ),
)
"""What to count as what, by key; a replayed message, ``visible`` NULL, is new to no group."""


def stats(c: sqlite3.Connection, now: float) -> QueueStats:
    groups = c.execute("SELECT gid, name, cursor FROM groups ORDER BY name").fetchall()
    return QueueStats(
        tuple(
            entry
            for gid, name, cursor in groups or [(0, "", 0)]
            for entry in _count(c, gid, name or None, cursor, now)
        )
    )


def _count(
    c: sqlite3.Connection, gid: int, group: ConsumerGroup, cursor: int, now: float
) -> list[KeyStats]:
    counts: dict[str, _Count] = {}
    for name, query in _COUNTS:
        for key, number, first in c.execute(query, {"gid": gid, "cursor": cursor, "now": now}):
            entry = counts.setdefault(key, _Count())
            setattr(entry, name, getattr(entry, name) + number)
            if first is not None:
                entry.oldest = first if entry.oldest is None else min(entry.oldest, first)
    return [
        KeyStats(
            key=key,
            group=group,
            ready=entry.ready,
            in_flight=entry.in_flight,
            delayed=entry.delayed,
            dead=entry.dead,
            oldest_age=_age(c, entry.oldest),
        )
        for key, entry in sorted(counts.items())
    ]


def _age(c: sqlite3.Connection, seq: int | None) -> float | None:
    row = c.execute("SELECT time FROM messages WHERE seq = ?", (seq,)).fetchone()
    return None if row is None else max(0.0, time.time() - row[0])


def dead_letters(
    c: sqlite3.Connection, group: ConsumerGroup, limit: int
) -> list[tuple[Row, int, str]]:
    """Return (row, attempts, headers) of the group's dead letters, in publish order."""
    rows = c.execute(
        "SELECT id, key, body, headers, time, attempts, dead_headers FROM dead"
        " WHERE gid = ? ORDER BY seq LIMIT ?",
        (gid_of(c, group), limit),
    )
    return [((a, b, d, e, f), attempts, headers) for a, b, d, e, f, attempts, headers in rows]


def replay(
    c: sqlite3.Connection, group: ConsumerGroup, ids: set[str] | None, limit: int | None
) -> int:
    """Make dead letters ready again for their group; returns how many."""
    gid = gid_of(c, group)
    rows = c.execute("SELECT seq, id FROM dead WHERE gid = ? ORDER BY seq", (gid,)).fetchall()
    chosen = [(gid, seq) for seq, id_ in rows if ids is None or id_ in ids][:limit]
    # The message may be gone; as a replayed one it is then no news to other groups.
    c.executemany(
        "INSERT OR IGNORE INTO messages (seq, id, key, body, headers, time, visible)"
        " SELECT seq, id, key, body, headers, time, NULL FROM dead WHERE gid = ? AND seq = ?",
        chosen,
    )
    c.executemany(
        "INSERT INTO ready SELECT gid, seq, key, 0 FROM dead WHERE gid = ? AND seq = ?", chosen
    )
    c.executemany("DELETE FROM dead WHERE gid = ? AND seq = ?", chosen)
    return len(chosen)


def group_names(c: sqlite3.Connection) -> list[ConsumerGroup]:
    return [name or None for (name,) in c.execute("SELECT name FROM groups ORDER BY name")]


def delete_group(c: sqlite3.Connection, group: ConsumerGroup) -> None:
    """Forget a group and drop what no other is yet to settle.

    Raises:
        ConfigurationError: If there is no such group.
    """
    gid = gid_of(c, group)
    if gid is None:
        raise ConfigurationError(f"there is no group {group!r}")
    for table in ("ready", "leased", "delayed", "dead", "groups"):
        c.execute(f"DELETE FROM {table} WHERE gid = ?", (gid,))  # noqa: S608
    c.execute(f"DELETE FROM messages WHERE {SETTLED_BY_ALL}")  # noqa: S608


def purge(c: sqlite3.Connection, group: ConsumerGroup, keys: KeyFilter, now: float) -> int:
    """Drop what waits for ``group``; with no group at all, what is retained."""
    gid = gid_of(c, group)
    if gid is not None:
        advance(c, gid, now)
        gone = [*_drop_new(c, gid, keys, now), *_drop_waiting(c, gid, keys)]
        forget(c, gone)
        return len(gone)
    if c.execute("SELECT 1 FROM groups").fetchone() is not None:
        return 0
    rows = c.execute("SELECT seq, key FROM messages").fetchall()
    retained = [(seq,) for seq, key in rows if keys.matches(key)]
    c.executemany("DELETE FROM messages WHERE seq = ?", retained)
    return len(retained)


def _drop_new(c: sqlite3.Connection, gid: int, keys: KeyFilter, now: float) -> list[int]:
    """Drop what the group has not looked at; keep, as looked at, what does not match."""
    new = (
        "FROM messages WHERE visible IS NOT NULL"
        " AND seq > (SELECT cursor FROM groups WHERE gid = ?)"
    )
    rows = c.execute(f"SELECT seq, key, visible {new}", (gid,)).fetchall()
    kept = [row for row in rows if not keys.matches(row[1])]
    c.executemany(
        "INSERT INTO ready VALUES (?, ?, ?, 0)",
        [(gid, seq, key) for seq, key, visible in kept if visible <= now],
    )
    c.executemany(
        "INSERT INTO delayed VALUES (?, ?, ?, 0)",
        [(gid, seq, visible) for seq, _, visible in kept if visible > now],
    )
    c.execute(
        "UPDATE groups SET cursor = max(cursor, (SELECT coalesce(max(seq), 0) FROM messages))"
        " WHERE gid = ?",
        (gid,),
    )
    return [seq for seq, key, _ in rows if keys.matches(key)]


def _drop_waiting(c: sqlite3.Connection, gid: int, keys: KeyFilter) -> list[int]:
    gone: list[int] = []
    for key in set(ready_keys(c, gid, keys)):
        gone += (seq for (seq,) in c.execute(OF_KEY.format("seq"), (gid, key)))
    c.executemany("DELETE FROM ready WHERE gid = ? AND seq = ?", [(gid, seq) for seq in gone])
    late = c.execute(
        "SELECT seq, m.key FROM delayed JOIN messages m USING (seq) WHERE gid = ?", (gid,)
    ).fetchall()
    dropped = [seq for seq, key in late if keys.matches(key)]
    c.executemany("DELETE FROM delayed WHERE gid = ? AND seq = ?", [(gid, s) for s in dropped])
    return gone + dropped
