"""How deliveries begin, last and end: functions of a connection, in a transaction."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from itertools import repeat

from abe.backends.message_queue.base import Outcome, Settlement, dead_headers
from abe.backends.message_queue.service.sqlite.content import COLUMNS, Claim, shown
from abe.backends.message_queue.service.sqlite.store import lease, runs

__all__ = ["begin", "extend", "forget", "settle"]


def begin(c: sqlite3.Connection, gid: int, claims: Iterable[Claim]) -> None:
    c.executemany(
        "INSERT INTO begun SELECT gid, ?2, 1 FROM leased"
        " WHERE gid = ?1 AND ?2 BETWEEN first AND last AND token = ?3"
        " ON CONFLICT DO UPDATE SET number = number + 1",
        [(gid, seq, token) for seq, token, _ in claims],
    )


def settle(
    c: sqlite3.Connection, gid: int, settlements: Sequence[Settlement], now: float
) -> list[int]:
    """Apply settlements of claims; returns the positions of those whose lease is lost."""
    lost = _take_out(c, gid, [s.delivery.receipt for s in settlements])
    done: list[int] = []
    for position, (delivery, outcome, delay, reason) in enumerate(settlements):
        if position in lost:
            continue
        seq, _, attempt = delivery.receipt
        if outcome is Outcome.ACK:
            done.append(seq)
        elif outcome is Outcome.REJECT:
            _bury(c, gid, delivery.receipt, reason)
            done.append(seq)
        else:
            attempts = attempt if outcome is Outcome.NACK else attempt - 1
            if delivery.began and outcome is Outcome.RELEASE:
                c.execute(
                    "UPDATE begun SET number = number - 1 WHERE gid = ? AND seq = ?", (gid, seq)
                )
            if delay:
                c.execute(
                    "INSERT INTO delayed VALUES (?, ?, ?, ?)", (gid, seq, now + delay, attempts)
                )
            else:
                back = "INSERT INTO ready SELECT ?, seq, key, ? FROM entries WHERE seq = ?"
                c.execute(back, (gid, attempts, seq))
    forget(c, gid, done)
    return sorted(lost)


def _take_out(c: sqlite3.Connection, gid: int, claims: Sequence[Claim]) -> set[int]:
    """End the leases of ``claims``.

    Returns:
        The positions of those whose lease had ended, or that come a second time.
    """
    lost: set[int] = set()
    by_token: dict[int, dict[int, int]] = {}
    for position, (seq, token, _) in enumerate(claims):
        if by_token.setdefault(token, {}).setdefault(seq, position) != position:
            lost.add(position)
    for token, wanted in by_token.items():
        query = "SELECT max(first) FROM leased WHERE gid = ? AND first <= ?"
        (start,) = c.execute(query, (gid, min(wanted))).fetchone()
        held = "FROM leased WHERE gid = ? AND first BETWEEN ? AND ? AND token = ?"
        where = (gid, start or 0, max(wanted), token)
        found = c.execute(f"SELECT first, last, due, attempts {held}", where).fetchall()
        c.execute(f"DELETE {held}", where)
        for first, last, due, attempts in found:
            kept = [seq for seq in range(first, last + 1) if wanted.pop(seq, None) is None]
            if kept:
                lease(c, gid, token, due, runs(zip(kept, repeat(attempts))))
        lost.update(wanted.values())
    return lost


def _bury(c: sqlite3.Connection, gid: int, taken: Claim, reason: str) -> None:
    row = c.execute(f"SELECT {COLUMNS} FROM entries WHERE seq = ?", (taken.seq,)).fetchone()  # noqa: S608
    message = shown(row, taken.attempt)
    why = dead_headers(
        message.headers, reason=reason, attempts=taken.attempt, id=message.id, key=message.key
    )
    c.execute(
        "INSERT INTO dead SELECT ?, seq, ?, key, content, ?, ? FROM entries WHERE seq = ?",
        (gid, message.id, taken.attempt, json.dumps(why), taken.seq),
    )


def forget(c: sqlite3.Connection, gid: int, seqs: Iterable[int]) -> None:
    """Delete messages that a group has just settled, if every other group has too."""
    gone = [run[:2] for run in runs(zip(sorted(seqs), repeat(0)))]
    if c.execute("SELECT 1 FROM begun WHERE gid = ?", (gid,)).fetchone() is not None:
        query = "DELETE FROM begun WHERE gid = ? AND seq BETWEEN ? AND ?"
        c.executemany(query, [(gid, *run) for run in gone])
    query = "DELETE FROM entries WHERE seq BETWEEN ? AND ?"
    if c.execute("SELECT 1 FROM groups WHERE gid != ?", (gid,)).fetchone() is not None:
        query += f" AND {SETTLED_BY_ALL}"
    c.executemany(query, gone)


SETTLED_BY_ALL = (
    "NOT EXISTS (SELECT 1 FROM groups g WHERE"
    " (g.cursor < entries.seq AND entries.visible IS NOT NULL)"
    " OR (SELECT last FROM leased t WHERE t.gid = g.gid AND t.first <= entries.seq"
    " ORDER BY t.first DESC LIMIT 1) >= entries.seq"
    " OR EXISTS (SELECT 1 FROM ready t WHERE t.gid = g.gid AND t.seq = entries.seq)"
    " OR EXISTS (SELECT 1 FROM delayed t WHERE t.gid = g.gid AND t.seq = entries.seq))"
)
"""A condition on `entries`."""


def extend(
    c: sqlite3.Connection, gid: int, claims: Sequence[Claim], now: float, seconds: float
) -> list[int]:
    """Move the end of leases; returns the positions of those that are lost."""
    lost = _take_out(c, gid, claims)
    by_token: dict[int, list[tuple[int, int]]] = {}
    for position, (seq, token, attempt) in enumerate(claims):
        if position not in lost:
            by_token.setdefault(token, []).append((seq, attempt))
    for token, queued in by_token.items():
        lease(c, gid, token, now + seconds, runs(sorted(queued)))
    return sorted(lost)
