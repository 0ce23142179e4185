"""Looking into the file and cleaning up: functions of a connection, each in a transaction."""

from __future__ import annotations

import heapq
import json
import sqlite3
import sys
import time
from collections.abc import Iterator, Set
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple

from abe.backends.message_queue.base import KeyFilter, Message
from abe.backends.message_queue.service.sqlite.content import COLUMNS, shown
from abe.backends.message_queue.service.sqlite.settling import forget
from abe.backends.message_queue.service.sqlite.store import (
    IN_HAND,
    Queued,
    advance,
    gid_of,
    pass_over,
    ready,
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
    """How far work in slices has come: ``last`` is the last row that was there when it began."""

    table: str
    after: int
    last: int
    done: int = 0


def peek(
    c: sqlite3.Connection, group: ConsumerGroup, keys: KeyFilter, limit: int, now: float
) -> list[Message]:
    gid = gid_of(c, group)
    found: list[Iterator[Queued]] = []
    if gid is not None:
        found.append(iter(ready(c, gid, keys, limit)))
    for where, values in (
        *((f"{table} WHERE t.gid = ? AND t.due <= ?", (gid, now)) for table in IN_HAND.values()),
        (
            "(SELECT 0 attempts), entries m WHERE m.seq >"
            " coalesce((SELECT cursor FROM groups WHERE gid = ?), 0) AND m.visible <= ?",
            (gid, now),
        ),
    ):
        rows = c.execute(f"SELECT m.seq, attempts, m.key FROM {where} ORDER BY m.seq", values)  # noqa: S608
        found.append(row[:2] for row in rows if keys.matches(row[2]))
    select = f"SELECT {COLUMNS} FROM entries WHERE seq = ?"  # noqa: S608
    return [
        shown(c.execute(select, (seq,)).fetchone(), attempts + 1)
        for seq, attempts in list(islice(heapq.merge(*found), limit))
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
            f"SELECT m.key, count(*), min(m.seq) FROM {IN_HAND[table]}"  # noqa: S608
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
        "SELECT key, sum(visible <= ?), sum(visible > ?), min(seq) FROM entries"
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
    row = c.execute(f"SELECT {COLUMNS} FROM entries WHERE seq = ?", (seq,)).fetchone()  # noqa: S608
    published = None if row is None else shown(row, 1).timestamp
    return None if published is None else max(0.0, time.time() - published.timestamp())


def dead_letters(c: sqlite3.Connection, group: ConsumerGroup, limit: int) -> list[Message]:
    query = f"SELECT {COLUMNS}, headers, attempts FROM dead WHERE gid = ? ORDER BY rowid LIMIT ?"  # noqa: S608
    found = []
    for *row, headers, attempts in c.execute(query, (gid_of(c, group), limit)):
        dead = shown(row, attempts)
        dead.headers = json.loads(headers)
        found.append(dead)
    return found


def replay(
    c: sqlite3.Connection,
    group: ConsumerGroup,
    ids: Set[str] | None,
    limit: int,
    position: Position | None = None,
) -> tuple[int, Position | None]:
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
        "INSERT OR IGNORE INTO entries (seq, key, visible, content)"
        " SELECT seq, key, NULL, content FROM dead WHERE gid = ? AND seq = ?",
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
        (last,) = c.execute("SELECT coalesce(max(seq), 0) FROM entries").fetchone()
        position = Position("entries", 0, last)
        if gid is not None:
            advance(c, gid, now)
            position = Position("new", 0, last)
    table, after, last, done = position
    if table == "new":
        reached = gid and pass_over(c, gid, now, SLICE)
        return 0, position if reached and reached < last else Position("delayed", 0, last)
    rows = c.execute(_WAITING[table], (gid, after, last, SLICE)).fetchall()
    gone = [seq for seq, key in rows if keys.matches(key)]
    if gid is None:
        c.executemany("DELETE FROM entries WHERE seq = ?", [(seq,) for seq in gone])
    else:
        query = f"DELETE FROM {table} WHERE gid = ? AND seq = ?"  # noqa: S608
        c.executemany(query, [(gid, seq) for seq in gone])
        forget(c, gid, gone)
    if len(rows) == SLICE:
        return len(gone), Position(table, rows[-1][0], last, done + len(gone))
    following = None if table != "delayed" else Position("ready", 0, last, done + len(gone))
    return len(gone), following


_WAITING = {
    "delayed": "SELECT m.seq, m.key FROM delayed t JOIN entries m USING (seq)"
    " WHERE gid = ?1 AND seq > ?2 AND seq <= ?3 ORDER BY seq LIMIT ?4",
    "ready": "SELECT seq, key FROM ready"
    " WHERE gid = ?1 AND seq > ?2 AND seq <= ?3 ORDER BY seq LIMIT ?4",
    "entries": "SELECT seq, key FROM entries"
    " WHERE ?1 IS NULL AND seq > ?2 AND seq <= ?3 ORDER BY seq LIMIT ?4",
}


def delete_group(
    c: sqlite3.Connection, group: ConsumerGroup, now: float, position: Position | None = None
) -> tuple[int, Position | None]:
    """Drop a slice of what a group holds, and with the last slice the group."""
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
    held = [
        "SELECT seq FROM entries WHERE seq > (SELECT cursor FROM groups WHERE gid = ?1)",
        "SELECT seq FROM ready WHERE gid = ?1",
        *(f"SELECT m.seq FROM {table} WHERE t.gid = ?1" for table in IN_HAND.values()),  # noqa: S608
    ]
    seqs = [seq for (seq,) in c.execute(" UNION ".join(held), (gid,))]
    for table in ("ready", *IN_HAND, "begun", "groups"):
        c.execute(f"DELETE FROM {table} WHERE gid = ?", (gid,))  # noqa: S608
    forget(c, gid, seqs)
    return 0, None
