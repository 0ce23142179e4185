"""How deliveries begin, last and end: functions of a connection, in a transaction."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from itertools import chain

from abe.backends.message_queue.base import Outcome, Settlement, dead_headers
from abe.backends.message_queue.service.sqlite.store import Claim, headers_of

__all__ = ["begin", "extend", "forget", "settle"]


def begin(c: sqlite3.Connection, gid: int, claims: Iterable[Claim]) -> None:
    """Count that the handling of leased messages begins."""
    c.executemany(
        "INSERT INTO begun SELECT gid, seq, 1 FROM leased WHERE gid = ? AND seq = ? AND token = ?"
        " ON CONFLICT DO UPDATE SET number = number + 1",
        [(gid, seq, token) for seq, token, *_ in claims],
    )


def settle(
    c: sqlite3.Connection, gid: int, settlements: Sequence[Settlement], now: float
) -> list[int]:
    """Apply settlements of claims; returns the positions of those whose lease is lost."""
    lost = _lost(c, gid, [s.delivery.receipt for s in settlements])
    ended: list[int] = []
    done: list[int] = []
    back: list[tuple[int, int, str, int]] = []
    late: list[tuple[int, int, float, int]] = []
    for position, (delivery, outcome, delay, reason) in enumerate(settlements):
        if position in lost:
            continue
        seq, _, attempt, key, _ = delivery.receipt
        ended.append(seq)
        if outcome is Outcome.ACK:
            done.append(seq)
        elif outcome is Outcome.REJECT:
            _bury(c, gid, delivery.receipt, reason)
            done.append(seq)
        else:
            attempts = attempt if outcome is Outcome.NACK else attempt - 1
            if delay:
                late.append((gid, seq, now + delay, attempts))
            else:
                back.append((gid, seq, key, attempts))
    c.executemany(
        "DELETE FROM leased WHERE gid = ? AND seq BETWEEN ? AND ?",
        [(gid, *run) for run in _runs(ended)],
    )
    c.executemany("INSERT INTO ready VALUES (?, ?, ?, ?)", back)
    c.executemany("INSERT INTO delayed VALUES (?, ?, ?, ?)", late)
    forget(c, gid, done)
    return sorted(lost)


def _lost(c: sqlite3.Connection, gid: int, claims: Sequence[Claim]) -> set[int]:
    """Return the positions of claims whose lease has ended, or that come a second time."""
    by_token: dict[int, list[int]] = {}
    for seq, token, *_ in claims:
        by_token.setdefault(token, []).append(seq)
    runs = [(gid, *run, token) for token, seqs in by_token.items() for run in _runs(seqs)]
    held = "FROM leased WHERE gid = ? AND seq BETWEEN ? AND ? AND token = ?"
    # Counting is cheap, and nearly always there are as many as claims.
    if sum(c.execute(f"SELECT count(*) {held}", run).fetchone()[0] for run in runs) == len(claims):
        return set()
    owned = set(chain.from_iterable(c.execute(f"SELECT seq, token {held}", run) for run in runs))
    lost: set[int] = set()
    for position, (seq, token, *_) in enumerate(claims):
        if (seq, token) in owned:
            owned.remove((seq, token))
        else:
            lost.add(position)
    return lost


def _bury(c: sqlite3.Connection, gid: int, taken: Claim, reason: str) -> None:
    query = "SELECT id, key, headers FROM messages WHERE seq = ?"
    id_, key, headers = c.execute(query, (taken.seq,)).fetchone()
    why = dead_headers(headers_of(headers), reason=reason, attempts=taken.attempt, id=id_, key=key)
    c.execute(
        "INSERT INTO dead SELECT ?, seq, id, key, body, headers, time, ?, ? FROM messages"
        " WHERE seq = ?",
        (gid, taken.attempt, json.dumps(why), taken.seq),
    )


def forget(c: sqlite3.Connection, gid: int, seqs: Iterable[int]) -> None:
    """Delete messages that a group has just settled, if every other group has too."""
    runs = _runs(seqs)
    c.executemany(
        "DELETE FROM begun WHERE gid = ? AND seq BETWEEN ? AND ?", [(gid, *run) for run in runs]
    )
    query = "DELETE FROM messages WHERE seq BETWEEN ? AND ?"
    if c.execute("SELECT 1 FROM groups WHERE gid != ?", (gid,)).fetchone() is not None:
        query += f" AND {SETTLED_BY_ALL}"
    c.executemany(query, runs)


SETTLED_BY_ALL = (
    "NOT EXISTS (SELECT 1 FROM groups g WHERE"
    " (g.cursor < messages.seq AND messages.visible IS NOT NULL)"
    " OR EXISTS (SELECT 1 FROM leased t WHERE t.gid = g.gid AND t.seq = messages.seq)"
    " OR EXISTS (SELECT 1 FROM ready t WHERE t.gid = g.gid AND t.seq = messages.seq)"
    " OR EXISTS (SELECT 1 FROM delayed t WHERE t.gid = g.gid AND t.seq = messages.seq))"
)
"""A condition on `messages`."""


def _runs(seqs: Iterable[int]) -> list[tuple[int, int]]:
    """Return ``seqs`` as first and last of each run of consecutive numbers."""
    runs: list[tuple[int, int]] = []
    for seq in sorted(seqs):
        if runs and seq <= runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], seq)
        else:
            runs.append((seq, seq))
    return runs


def extend(
    c: sqlite3.Connection, gid: int, claims: Sequence[Claim], now: float, seconds: float
) -> list[int]:
    """Move the end of leases; returns the positions of those that are lost."""
    query = "UPDATE leased SET due = ? WHERE gid = ? AND seq = ? AND token = ?"
    return [
        position
        for position, taken in enumerate(claims)
        if not c.execute(query, (now + seconds, gid, taken.seq, taken.token)).rowcount
    ]
