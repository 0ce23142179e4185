"""Looking into the file and cleaning up: functions of a connection, each in a transaction."""

from __future__ import annotations

import heapq
import sqlite3
import sys
import time
from collections.abc import Iterator, Set
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple

from abe.backends.message_queue.base import KeyFilter, Message
from abe.backends.message_queue.service.sqlite.settling import forget
from abe.backends.message_queue.service.sqlite.store import (
    COLUMNS,
    advance,
    gid_of,
    ready,
    shown,
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


SLICE = 2000
"""Rows that one transaction works off, so that others are not kept from writing."""


class Position(NamedTuple):
    """How far work in slices has come; it ends with what was there when it began.

    Attributes:
        table: What is being worked off.
        after: The last row seen there.
        last: The last row that was there at the beginning.
        done: How many were worked off.
    """

    table: str
    after: int
    last: int
    done: int = 0


def peek(
    c: sqlite3.Connection, group: ConsumerGroup, keys: KeyFilter, limit: int, now: float
) -> list[Message]:
    """Return what the group could take now, in publish order."""
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
    select = f"SELECT {COLUMNS} FROM messages WHERE seq = ?"  # noqa: S608
    return [
        shown(c.execute(select, (seq,)).fetchone(), attempts + 1)
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
)
"""What to count as what, by key, of what a group has looked at."""


def stats(c: sqlite3.Connection, now: float) -> QueueStats:
    groups = c.execute("SELECT gid, name, cursor FROM groups ORDER BY cursor DESC").fetchall()
    new: dict[str, _Count] = {}
    until = sys.maxsize
    entries: list[KeyStats] = []
    for gid, name, cursor in groups or [(0, "", 0)]:
        _add_new(c, new, cursor, until, now)
        until = cursor
        entries += _count(c, gid, name or None, new, now)
    return QueueStats(tuple(sorted(entries, key=lambda entry: (entry.group or "", entry.key))))


def _add_new(
    c: sqlite3.Connection, counts: dict[str, _Count], after: int, until: int, now: float
) -> None:
    """Count, besides what is counted, the messages after one position and up to another.

    Thus what is new to several groups is counted once. A replayed message, ``visible`` NULL, is
    new to none.
    """
    rows = c.execute(
        "SELECT key, sum(visible <= ?), sum(visible > ?), min(seq) FROM messages"
        " WHERE seq > ? AND seq <= ? AND visible IS NOT NULL GROUP BY key",
        (now, now, after, until),
    )
    for key, due, late, first in rows:
        entry = counts.setdefault(key, _Count())
        entry.ready += due
        entry.delayed += late
        entry.oldest = first


def _count(
    c: sqlite3.Connection, gid: int, group: ConsumerGroup, new: dict[str, _Count], now: float
) -> list[KeyStats]:
    counts = {key: replace(entry) for key, entry in new.items()}
    for name, query in _COUNTS:
        for key, number, first in c.execute(query, {"gid": gid, "now": now}):
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


def dead_letters(c: sqlite3.Connection, group: ConsumerGroup, limit: int) -> list[Message]:
    """Return the group's dead letters, the first that died first."""
    columns = COLUMNS.replace("headers", "dead_headers")
    rows = c.execute(
        f"SELECT {columns}, attempts FROM dead WHERE gid = ? ORDER BY rowid LIMIT ?",  # noqa: S608
        (gid_of(c, group), limit),
    )
    return [shown(row[:-1], row[-1]) for row in rows]


def replay(
    c: sqlite3.Connection,
    group: ConsumerGroup,
    ids: Set[str] | None,
    limit: int,
    position: Position | None = None,
) -> tuple[int, Position | None]:
    """Make a slice of the dead letters ready again for their group."""
    gid = gid_of(c, group)
    if position is None:
        (last,) = c.execute("SELECT coalesce(max(rowid), 0) FROM dead").fetchone()
        position = Position("dead", 0, last)
    rows = c.execute(
        "SELECT rowid, seq, id FROM dead WHERE gid = ? AND rowid > ? AND rowid <= ?"
        " ORDER BY rowid LIMIT ?",
        (gid, position.after, position.last, SLICE),
    ).fetchall()
    left = limit - position.done
    chosen = [(gid, seq) for _, seq, id_ in rows if ids is None or id_ in ids][:left]
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
    if len(rows) < SLICE or len(chosen) == left:
        return len(chosen), None
    return len(chosen), position._replace(after=rows[-1][0], done=position.done + len(chosen))


def group_names(c: sqlite3.Connection) -> list[ConsumerGroup]:
    return [name or None for (name,) in c.execute("SELECT name FROM groups ORDER BY name")]


def purge(
    c: sqlite3.Connection,
    group: ConsumerGroup,
    keys: KeyFilter,
    now: float,
    position: Position | None = None,
) -> tuple[int, Position | None]:
    """Drop a slice of what waits for ``group``; with no group at all, of what is retained."""
    gid = gid_of(c, group)
    if gid is None and c.execute("SELECT 1 FROM groups").fetchone() is not None:
        return 0, None
    if position is None:
        (last,) = c.execute("SELECT coalesce(max(seq), 0) FROM messages").fetchone()
        position = Position("new" if gid is not None else "retained", 0, last)
        if gid is not None:
            advance(c, gid, now)
    table, after, last, done = position
    rows = c.execute(_WAITING[table], (gid, after, last, SLICE)).fetchall()
    gone = [row[0] for row in rows if keys.matches(row[1])]
    if gid is None:
        c.executemany("DELETE FROM messages WHERE seq = ?", [(seq,) for seq in gone])
    elif table == "new":
        _pass_over(c, gid, [row for row in rows if not keys.matches(row[1])], now)
        reached = rows[-1][0] if len(rows) == SLICE else last
        c.execute("UPDATE groups SET cursor = max(cursor, ?) WHERE gid = ?", (reached, gid))
    else:
        query = f"DELETE FROM {table} WHERE gid = ? AND seq = ?"  # noqa: S608
        c.executemany(query, [(gid, seq) for seq in gone])
    if gid is not None:
        forget(c, gid, gone)
    if len(rows) == SLICE:
        return len(gone), Position(table, rows[-1][0], last, done + len(gone))
    following = {"new": "delayed", "delayed": "ready"}.get(table)
    if following is None:
        return len(gone), None
    return len(gone), Position(following, 0, last, done + len(gone))


_WAITING = {
    "new": "SELECT seq, key, visible FROM messages WHERE visible IS NOT NULL"
    " AND seq > max(?2, (SELECT cursor FROM groups WHERE gid = ?1)) AND seq <= ?3"
    " ORDER BY seq LIMIT ?4",
    "delayed": "SELECT seq, m.key FROM delayed JOIN messages m USING (seq)"
    " WHERE gid = ?1 AND seq > ?2 AND seq <= ?3 ORDER BY seq LIMIT ?4",
    "ready": "SELECT seq, key FROM ready"
    " WHERE gid = ?1 AND seq > ?2 AND seq <= ?3 ORDER BY seq LIMIT ?4",
    "retained": "SELECT seq, key, ?1 FROM messages"
    " WHERE seq > ?2 AND seq <= ?3 ORDER BY seq LIMIT ?4",
}


def _pass_over(
    c: sqlite3.Connection, gid: int, rows: list[tuple[int, str, float]], now: float
) -> None:
    """Keep new messages for the group, as looked at."""
    c.executemany(
        "INSERT INTO ready VALUES (?, ?, ?, 0)",
        [(gid, seq, key) for seq, key, visible in rows if visible <= now],
    )
    c.executemany(
        "INSERT INTO delayed VALUES (?, ?, ?, 0)",
        [(gid, seq, visible) for seq, _, visible in rows if visible > now],
    )


def delete_group(
    c: sqlite3.Connection, group: ConsumerGroup, now: float, position: Position | None = None
) -> tuple[int, Position | None]:
    """Drop a slice of what a group holds, and with the last slice the group.

    Raises:
        ConfigurationError: If there is no such group.
    """
    gid = gid_of(c, group)
    if gid is None:
        if position is None:
            raise ConfigurationError(f"there is no group {group!r}")
        return 0, None
    if position is None or position.table != "dead":
        _, position = purge(c, group, KeyFilter(), now, position)
        return 0, position or Position("dead", 0, 0)
    some = "SELECT rowid FROM dead WHERE gid = ? LIMIT ?"
    if c.execute(f"DELETE FROM dead WHERE rowid IN ({some})", (gid, SLICE)).rowcount == SLICE:  # noqa: S608
        return 0, position
    held = " UNION ".join(f"SELECT seq FROM {t} WHERE gid = ?1" for t in _HELD)  # noqa: S608
    new = "SELECT seq FROM messages WHERE seq > (SELECT cursor FROM groups WHERE gid = ?1)"
    seqs = [seq for (seq,) in c.execute(f"{held} UNION {new} AND visible IS NOT NULL", (gid,))]
    for table in (*_HELD, "begun", "groups"):
        c.execute(f"DELETE FROM {table} WHERE gid = ?", (gid,))  # noqa: S608
    forget(c, gid, seqs)
    return 0, None


_HELD = ("ready", "leased", "delayed")
"""What a group has looked at and not settled."""
