"""What `SQLiteBackend` does to its file: functions of a connection, each run in a transaction."""

from __future__ import annotations

import json
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from abe.backends.message_queue.base import (
    KeyFilter,
    Message,
    Outcome,
    Outgoing,
    dead_headers,
    decode_payload,
)
from abe.errors import ConfigurationError
from abe.types import ConsumerGroup, KeyStats, QueueStats

__all__ = ["Claim", "Settled"]

SUSPECT_ATTEMPT = 3
"""From this attempt on a message is handed out alone: it may be what kills its consumers."""

Row = tuple[str, str, str, str | None, float]


class Claim(NamedTuple):
    """A leased message.

    Attributes:
        seq: Its position in publish order.
        token: Proof of ownership, new for every claim.
        attempt: Which delivery this is.
        row: What the message consists of.
    """

    seq: int
    token: int
    attempt: int
    row: Row


class Settled(NamedTuple):
    """How a claim ended.

    Attributes:
        claim: Which.
        outcome: ``ack``, ``nack``, ``release`` or ``reject``.
        delay: Seconds until a nacked message may come back.
        reason: Why it was rejected.
    """

    claim: Claim
    outcome: Outcome
    delay: float
    reason: str


def message_of(row: Row, attempt: int = 1, headers: str | None = None) -> Message:
    """Return a stored message as consumers see it."""
    id_, key, body, own, published = row
    text = headers if headers is not None else own
    decoded = json.loads(text) if text else {}
    return Message(decode_payload(body), id_, key, published, attempt, decoded)


# -- publishing ----------------------------------------------------------------------------


def publish(c: sqlite3.Connection, items: Sequence[Outgoing], now: float) -> None:
    c.executemany(
        "INSERT INTO messages (id, key, body, headers, time, visible) VALUES (?, ?, ?, ?, ?, ?)",
        [
            (
                uuid.uuid4().hex,
                item.key,
                item.body,
                json.dumps(item.headers) if item.headers else None,
                time.time(),
                now + item.delay if item.delay else 0.0,
            )
            for item in items
        ],
    )


# -- consuming -----------------------------------------------------------------------------


def open_group(c: sqlite3.Connection, group: ConsumerGroup) -> int:
    c.execute("INSERT OR IGNORE INTO groups (name, cursor) VALUES (?, 0)", (group or "",))
    return gid_of(c, group) or 0


def gid_of(c: sqlite3.Connection, group: ConsumerGroup) -> int | None:
    row = c.execute("SELECT gid FROM groups WHERE name = ?", (group or "",)).fetchone()
    return None if row is None else int(row[0])


def claim(
    c: sqlite3.Connection,
    gid: int,
    keys: KeyFilter,
    limit: int,
    now: float,
    lease: float,
    token: int,
) -> list[Claim]:
    """Lease up to ``limit`` messages, in publish order; a suspect comes alone.

    Raises:
        ConfigurationError: If the group was deleted.
    """
    if c.execute("SELECT 1 FROM groups WHERE gid = ?", (gid,)).fetchone() is None:
        raise ConfigurationError(
            "the group was deleted while this stream was open; open a new stream"
        )
    _advance(c, gid, now)
    chosen = _ready(c, gid, keys, limit)
    first_suspect = next((n for n, x in enumerate(chosen) if x[1] + 1 >= SUSPECT_ATTEMPT), None)
    if first_suspect is not None:
        chosen = chosen[: max(1, first_suspect)]
    c.executemany(
        "UPDATE pending SET due = ?, attempts = attempts + 1, token = ? WHERE gid = ? AND seq = ?",
        [(now + lease, token, gid, seq) for seq, _ in chosen],
    )
    claims = _rows(c, [(seq, attempts + 1) for seq, attempts in chosen], token)
    if first_suspect is None and len(claims) < limit:
        claims += _claim_new(c, gid, keys, limit - len(claims), now, lease, token)
    return claims


def _advance(c: sqlite3.Connection, gid: int, now: float) -> None:
    """Make ready what is due: delays that are over, leases that have lapsed."""
    c.execute(
        "UPDATE pending SET due = 0 WHERE gid = ? AND token IS NULL AND due > 0 AND due <= ?",
        (gid, now),
    )
    c.execute(
        "UPDATE pending SET due = 0, token = NULL WHERE gid = ? AND token IS NOT NULL AND due <= ?",
        (gid, now),
    )


def _ready(c: sqlite3.Connection, gid: int, keys: KeyFilter, limit: int) -> list[tuple[int, int]]:
    """Return (seq, attempts) of ready messages that pass the filter, in publish order."""
    select = "SELECT seq, attempts FROM pending INDEXED BY ready WHERE gid = ? AND due = 0"
    found: list[tuple[int, int]] = []
    for key in _ready_keys(c, gid):
        if keys.matches(key):
            query = f"{select} AND key = ? ORDER BY seq LIMIT ?"
            found += c.execute(query, (gid, key, limit)).fetchall()
    return sorted(found)[:limit]


def _ready_keys(c: sqlite3.Connection, gid: int) -> list[str]:
    """Return the distinct keys of ready messages, one index look-up each."""
    query = (
        "WITH RECURSIVE k(key) AS ("
        " SELECT min(key) FROM pending INDEXED BY ready WHERE gid = :gid AND due = 0"
        " UNION ALL SELECT (SELECT min(key) FROM pending INDEXED BY ready"
        " WHERE gid = :gid AND due = 0 AND key > k.key) FROM k WHERE k.key IS NOT NULL"
        ") SELECT key FROM k WHERE key IS NOT NULL"
    )
    return [key for (key,) in c.execute(query, {"gid": gid})]


def _claim_new(
    c: sqlite3.Connection,
    gid: int,
    keys: KeyFilter,
    limit: int,
    now: float,
    lease: float,
    token: int,
) -> list[Claim]:
    """Lease messages the group has not looked at; those that do not match wait for others."""
    claims: list[Claim] = []
    while len(claims) < limit:
        rows = c.execute(
            "SELECT m.seq, m.visible, m.id, m.key, m.body, m.headers, m.time FROM messages m"
            " WHERE m.seq > (SELECT cursor FROM groups WHERE gid = ?) ORDER BY m.seq LIMIT ?",
            (gid, limit - len(claims)),
        ).fetchall()
        if not rows:
            break
        pending: list[tuple[int, int, str, float, int, int | None]] = []
        for seq, visible, *row in rows:
            if visible > now:
                pending.append((gid, seq, row[1], visible, 0, None))
            elif keys.matches(row[1]):
                pending.append((gid, seq, row[1], now + lease, 1, token))
                claims.append(Claim(seq, token, 1, tuple(row)))
            else:
                pending.append((gid, seq, row[1], 0.0, 0, None))
        c.executemany("INSERT INTO pending VALUES (?, ?, ?, ?, ?, ?)", pending)
        c.execute("UPDATE groups SET cursor = ? WHERE gid = ?", (rows[-1][0], gid))
    return claims


def _rows(c: sqlite3.Connection, chosen: Sequence[tuple[int, int]], token: int) -> list[Claim]:
    select = "SELECT id, key, body, headers, time FROM messages WHERE seq = ?"
    return [
        Claim(seq, token, attempt, c.execute(select, (seq,)).fetchone()) for seq, attempt in chosen
    ]


def settle(c: sqlite3.Connection, gid: int, settled: Sequence[Settled], now: float) -> list[int]:
    """Apply settlements; returns the positions of those whose lease is lost."""
    lost: list[int] = []
    done: list[int] = []
    drop = "DELETE FROM pending WHERE gid = ? AND seq = ? AND token = ?"
    put_back = (
        "UPDATE pending SET due = ?, attempts = ?, token = NULL"
        " WHERE gid = ? AND seq = ? AND token = ?"
    )
    for position, (taken, outcome, delay, reason) in enumerate(settled):
        if outcome is Outcome.ACK or outcome is Outcome.REJECT:
            changed = c.execute(drop, (gid, taken.seq, taken.token)).rowcount
            if changed:
                done.append(taken.seq)
                if outcome is Outcome.REJECT:
                    _bury(c, gid, taken, reason)
        else:
            attempts = taken.attempt if outcome is Outcome.NACK else taken.attempt - 1
            due = now + delay if delay else 0.0
            changed = c.execute(put_back, (due, attempts, gid, taken.seq, taken.token)).rowcount
        if not changed:
            lost.append(position)
    _forget(c, done)
    return lost


def _bury(c: sqlite3.Connection, gid: int, taken: Claim, reason: str) -> None:
    id_, key, body, headers, published = taken.row
    own = json.loads(headers) if headers else {}
    why = dead_headers(own, reason=reason, attempts=taken.attempt, id=id_, key=key)
    c.execute(
        "INSERT OR REPLACE INTO dead VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (gid, taken.seq, id_, key, body, headers, published, taken.attempt, json.dumps(why)),
    )


def _forget(c: sqlite3.Connection, seqs: Iterable[int]) -> None:
    """Delete those messages that every group has settled."""
    (groups,) = c.execute("SELECT count(*) FROM groups").fetchone()
    query = "DELETE FROM messages WHERE seq = ?"
    if groups > 1:
        query += (
            " AND NOT EXISTS (SELECT 1 FROM groups g WHERE g.cursor < messages.seq OR EXISTS"
            " (SELECT 1 FROM pending p WHERE p.gid = g.gid AND p.seq = messages.seq))"
        )
    c.executemany(query, [(seq,) for seq in seqs])


def extend(
    c: sqlite3.Connection, gid: int, claims: Sequence[Claim], now: float, seconds: float
) -> list[int]:
    query = "UPDATE pending SET due = ? WHERE gid = ? AND seq = ? AND token = ?"
    return [
        position
        for position, taken in enumerate(claims)
        if not c.execute(query, (now + seconds, gid, taken.seq, taken.token)).rowcount
    ]


def next_due(c: sqlite3.Connection, gid: int) -> float | None:
    """Return when the next delay or lease of the group ends, if any does."""
    row = c.execute("SELECT min(due) FROM pending WHERE gid = ? AND due > 0", (gid,)).fetchone()
    return None if row is None or row[0] is None else float(row[0])


# -- looking and cleaning up ---------------------------------------------------------------


def peek(
    c: sqlite3.Connection, group: ConsumerGroup, keys: KeyFilter, limit: int, now: float
) -> list[tuple[Row, int]]:
    """Return (row, attempt) of what the group could take now, in publish order."""
    gid = gid_of(c, group)
    if gid is not None:
        _advance(c, gid, now)
    rows = c.execute(
        "SELECT m.id, m.key, m.body, m.headers, m.time, coalesce(p.attempts, 0) FROM messages m"
        " LEFT JOIN groups g ON g.gid = :gid"
        " LEFT JOIN pending p ON p.gid = g.gid AND p.seq = m.seq"
        " WHERE (p.seq IS NOT NULL AND p.due = 0) OR (p.seq IS NULL"
        " AND m.seq > coalesce(g.cursor, 0) AND m.visible <= :now) ORDER BY m.seq",
        {"gid": gid, "now": now},
    )
    found: list[tuple[Row, int]] = []
    for *row, attempts in rows:
        if len(found) >= limit:
            break
        if keys.matches(row[1]):
            found.append(((row[0], row[1], row[2], row[3], row[4]), attempts + 1))
    return found


def stats(c: sqlite3.Connection, now: float) -> QueueStats:
    groups = c.execute("SELECT gid, name, cursor FROM groups ORDER BY name").fetchall()
    entries: list[KeyStats] = []
    for gid, name, cursor in groups or [(0, "", 0)]:
        if groups:
            _advance(c, gid, now)
        entries += _count(c, gid, name or None, cursor, now)
    return QueueStats(tuple(entries))


def _count(
    c: sqlite3.Connection, gid: int, group: ConsumerGroup, cursor: int, now: float
) -> list[KeyStats]:
    rows = c.execute(
        "SELECT key, sum(ready), sum(leased), sum(late), sum(dead), min(time) FROM ("
        " SELECT p.key, p.due = 0 AS ready, p.token IS NOT NULL AS leased,"
        "  p.token IS NULL AND p.due > 0 AS late, 0 AS dead, m.time"
        "  FROM pending p JOIN messages m USING (seq) WHERE p.gid = :gid"
        " UNION ALL SELECT key, visible <= :now, 0, visible > :now, 0, time FROM messages"
        "  WHERE seq > :cursor"
        " UNION ALL SELECT key, 0, 0, 0, 1, NULL FROM dead WHERE gid = :gid"
        ") GROUP BY key ORDER BY key",
        {"gid": gid, "cursor": cursor, "now": now},
    )
    return [
        KeyStats(
            key=key,
            group=group,
            ready=ready,
            in_flight=leased,
            delayed=late,
            dead=dead,
            oldest_age=None if oldest is None else max(0.0, time.time() - oldest),
        )
        for key, ready, leased, late, dead, oldest in rows
    ]


def dead_letters(
    c: sqlite3.Connection, group: ConsumerGroup, limit: int
) -> list[tuple[Row, int, str]]:
    rows = c.execute(
        "SELECT m.id, m.key, m.body, m.headers, m.time, m.attempts, m.dead_headers FROM dead m"
        " WHERE m.gid = ? ORDER BY m.seq LIMIT ?",
        (gid_of(c, group) or 0, max(0, limit)),
    )
    return [((a, b, d, e, f), attempts, headers) for a, b, d, e, f, attempts, headers in rows]


def replay(
    c: sqlite3.Connection, group: ConsumerGroup, ids: set[str] | None, limit: int | None
) -> int:
    gid = gid_of(c, group) or 0
    rows = c.execute(
        "SELECT seq, id, key, body, headers, time FROM dead WHERE gid = ? ORDER BY seq", (gid,)
    ).fetchall()
    chosen = [row for row in rows if ids is None or row[1] in ids][:limit]
    for seq, *row in chosen:
        c.execute("INSERT OR IGNORE INTO messages VALUES (?, ?, ?, ?, ?, ?, 0)", (seq, *row))
        c.execute("INSERT INTO pending VALUES (?, ?, ?, 0, 0, NULL)", (gid, seq, row[1]))
        c.execute("DELETE FROM dead WHERE gid = ? AND seq = ?", (gid, seq))
    return len(chosen)


def group_names(c: sqlite3.Connection) -> list[ConsumerGroup]:
    return [name or None for (name,) in c.execute("SELECT name FROM groups ORDER BY gid")]


def delete_group(c: sqlite3.Connection, group: ConsumerGroup) -> None:
    """Forget a group.

    Raises:
        ConfigurationError: If there is no such group.
    """
    gid = gid_of(c, group)
    if gid is None:
        raise ConfigurationError(f"there is no group {group!r}")
    for table in ("pending", "dead", "groups"):
        c.execute(f"DELETE FROM {table} WHERE gid = ?", (gid,))  # noqa: S608 - names from above
    if c.execute("SELECT 1 FROM groups").fetchone() is not None:
        _forget(c, [seq for (seq,) in c.execute("SELECT seq FROM messages").fetchall()])


def purge(c: sqlite3.Connection, group: ConsumerGroup, matches: Callable[[str], bool]) -> int:
    """Drop what waits for ``group``; with no group at all, what is retained."""
    gid = gid_of(c, group)
    if gid is None:
        if c.execute("SELECT 1 FROM groups").fetchone() is not None:
            return 0
        rows = c.execute("SELECT seq, key FROM messages").fetchall()
        gone = [(seq,) for seq, key in rows if matches(key)]
        c.executemany("DELETE FROM messages WHERE seq = ?", gone)
        return len(gone)
    c.execute(
        "INSERT INTO pending SELECT g.gid, m.seq, m.key, m.visible, 0, NULL"
        " FROM messages m JOIN groups g ON g.gid = ? WHERE m.seq > g.cursor",
        (gid,),
    )
    c.execute(
        "UPDATE groups SET cursor = max(cursor, (SELECT coalesce(max(seq), 0) FROM messages))"
        " WHERE gid = ?",
        (gid,),
    )
    rows = c.execute(
        "SELECT seq, key FROM pending WHERE gid = ? AND token IS NULL", (gid,)
    ).fetchall()
    waiting = [seq for seq, key in rows if matches(key)]
    c.executemany("DELETE FROM pending WHERE gid = ? AND seq = ?", [(gid, s) for s in waiting])
    _forget(c, waiting)
    return len(waiting)
