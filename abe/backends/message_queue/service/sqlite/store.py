"""What publishing and consuming do to the file: functions of a connection, in a transaction."""

from __future__ import annotations

import heapq
import json
import secrets
import sqlite3
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import chain, count, islice
from typing import NamedTuple

from abe.backends.message_queue.base import (
    KeyFilter,
    Message,
    Outcome,
    Outgoing,
    Settlement,
    dead_headers,
    decode_payload,
)
from abe.backends.message_queue.base.process import PerProcess
from abe.types import ConsumerGroup

__all__ = ["Claim", "GroupGoneError", "Nothing"]

SUSPECT_ATTEMPT = 3
"""From this attempt on a message is handed out alone: it may be what kills its consumers."""
SCAN_LIMIT = 10_000
"""Most new messages that one claim looks at, so that it does not hold up other processes."""

MANY_KEYS = 64
"""With more matching keys ready than this, the backlog is read in order and filtered."""
FIRST_CHARACTER = "!"
AFTER_DOT = "/"
AFTER_ALL_KEYS = "\U0010ffff" * 51
"""Bounds of ranges of keys: what no key holds, or is longer than any."""

Row = tuple[str, str, str, str | None, float]


class GroupGoneError(Exception):
    """The group does not exist any more."""


class Claim(NamedTuple):
    """The lease of a message.

    Attributes:
        seq: Its position in publish order.
        token: Proof of ownership, new for every claim.
        attempt: Which delivery this is.
        key: The message's key.
    """

    seq: int
    token: int
    attempt: int
    key: str


class Nothing(NamedTuple):
    """There is nothing to claim.

    Attributes:
        due: When the next delay or lease of the group ends, if any does.
    """

    due: float | None


def message_of(row: Row, attempt: int = 1, headers: str | None = None) -> Message:
    """Return a stored message as consumers see it."""
    id_, key, body, own, published = row
    text = headers if headers is not None else own
    decoded = json.loads(text) if text else {}
    return Message(decode_payload(body), id_, key, published, attempt, decoded)


# -- publishing ----------------------------------------------------------------------------


def _new_ids() -> Iterator[str]:
    """Return ids that no other process, before or after, gives."""
    prefix = secrets.token_hex(8)
    return (f"{prefix}-{n:x}" for n in count(1))


_ids = PerProcess(_new_ids)


def publish(c: sqlite3.Connection, items: Sequence[Outgoing], now: float) -> None:
    ids = _ids.get()
    c.executemany(
        "INSERT INTO messages (id, key, body, headers, time, visible) VALUES (?, ?, ?, ?, ?, ?)",
        [
            (
                next(ids),
                key,
                body,
                json.dumps(headers) if headers else None,
                time.time(),
                now + delay if delay else 0.0,
            )
            for key, body, headers, delay in items
        ],
    )


# -- consuming -----------------------------------------------------------------------------


def open_group(c: sqlite3.Connection, group: ConsumerGroup) -> int:
    gid = gid_of(c, group)
    if gid is None:
        gid = secrets.randbits(47)  # six bytes in every row
        c.execute("INSERT INTO groups (gid, name, cursor) VALUES (?, ?, 0)", (gid, group or ""))
    return gid


def gid_of(c: sqlite3.Connection, group: ConsumerGroup) -> int | None:
    row = c.execute("SELECT gid FROM groups WHERE name = ?", (group or "",)).fetchone()
    return None if row is None else int(row[0])


def glance(c: sqlite3.Connection, gid: int, keys: KeyFilter, now: float) -> Nothing | None:
    """Return `Nothing` if a claim would take nothing, ``None`` if it may take something.

    Raises:
        GroupGoneError: If the group was deleted.
    """
    news, lapse, delay = c.execute(
        "SELECT (SELECT cursor FROM groups WHERE gid = :gid)"
        " < (SELECT coalesce(max(seq), 0) FROM messages),"
        " (SELECT min(due) FROM leased WHERE gid = :gid),"
        " (SELECT min(due) FROM delayed WHERE gid = :gid)",
        {"gid": gid},
    ).fetchone()
    if news is None:
        raise GroupGoneError
    due = min((d for d in (lapse, delay) if d is not None), default=None)
    if news or (due is not None and due <= now):
        return None
    with closing(ready_keys(c, gid, keys)) as waiting:
        return Nothing(due) if next(waiting, None) is None else None


def claim(
    c: sqlite3.Connection,
    gid: int,
    keys: KeyFilter,
    limit: int,
    now: float,
    lease: float,
    token: int,
) -> list[tuple[Claim, Row]]:
    """Lease up to ``limit`` messages, in publish order; a suspect comes alone.

    Raises:
        GroupGoneError: If the group was deleted.
    """
    advance(c, gid, now)
    chosen = ready(c, gid, keys, limit)
    suspect = next((n for n, x in enumerate(chosen) if x[2] + 1 >= SUSPECT_ATTEMPT), None)
    if suspect is not None:
        chosen = chosen[: max(1, suspect)]
    taken = _take_ready(c, gid, chosen, now + lease, token)
    if suspect is None and len(taken) < limit:
        taken += _take_new(c, gid, keys, limit - len(taken), now, lease, token)
    return taken


def advance(c: sqlite3.Connection, gid: int, now: float) -> None:
    """Make ready what is due: delays that are over, leases that have lapsed."""
    for table in ("leased", "delayed"):
        due = f"FROM {table} t WHERE t.gid = ? AND t.due <= ?"
        if c.execute(f"SELECT 1 {due}", (gid, now)).fetchone() is not None:
            c.execute(
                "INSERT INTO ready SELECT t.gid, t.seq, (SELECT key FROM messages m"  # noqa: S608
                f" WHERE m.seq = t.seq), t.attempts {due}",
                (gid, now),
            )
            c.execute(f"DELETE FROM {table} WHERE gid = ? AND due <= ?", (gid, now))  # noqa: S608


def ready(
    c: sqlite3.Connection, gid: int, keys: KeyFilter, limit: int
) -> list[tuple[int, str, int]]:
    """Return (seq, key, attempts) of ready messages that pass the filter, in publish order."""
    query = "SELECT seq, key, attempts FROM ready WHERE gid = ? ORDER BY seq"
    if not keys:
        return c.execute(query + " LIMIT ?", (gid, limit)).fetchall()
    with closing(ready_keys(c, gid, keys)) as waiting:
        matching = set(islice(waiting, MANY_KEYS + 1))
    if len(matching) > MANY_KEYS:
        cursors = [c.execute(query, (gid,))]
        found = list(islice((row for row in cursors[0] if keys.matches(row[1])), limit))
    else:
        cursors = [c.execute(OF_KEY.format("seq, key, attempts"), (gid, key)) for key in matching]
        found = list(islice(heapq.merge(*cursors), limit))
    for cursor in cursors:
        cursor.close()
    return found


# Left alone, SQLite reads the whole backlog, which has the right order, instead of the index.
OF_KEY = "SELECT {} FROM ready INDEXED BY ready_by_key WHERE gid = ? AND key = ? ORDER BY seq"


def ready_keys(c: sqlite3.Connection, gid: int, keys: KeyFilter) -> Generator[str, None, None]:
    """Yield the keys of ready messages that pass, by one look-up in the index each.

    A key that several patterns match may come several times.
    """
    query = (
        "WITH RECURSIVE k(key) AS ("
        " SELECT min(key) FROM ready WHERE gid = :gid AND key >= :low AND key < :high"
        " UNION ALL SELECT (SELECT min(key) FROM ready"
        " WHERE gid = :gid AND key > k.key AND key < :high) FROM k WHERE k.key IS NOT NULL"
        ") SELECT key FROM k WHERE key IS NOT NULL"
    )
    for low, high in _ranges(keys.patterns):
        # An open cursor would hold on to an old state of the file.
        with closing(c.execute(query, {"gid": gid, "low": low, "high": high})) as rows:
            yield from (key for (key,) in rows if keys.matches(key))


def _ranges(patterns: Sequence[str]) -> set[tuple[str, str]]:
    """Return ranges that hold every key that matches: what stands before the first wildcard."""
    ranges = set()
    for pattern in patterns or ("**",):
        literal, wildcard, _ = pattern.partition("*")
        if not wildcard:
            ranges.add((pattern, pattern + FIRST_CHARACTER))
        elif not literal:
            ranges.add(("", AFTER_ALL_KEYS))
        else:
            ranges.add((literal, literal[:-1] + AFTER_DOT))
    return ranges


def _take_ready(
    c: sqlite3.Connection,
    gid: int,
    chosen: Sequence[tuple[int, str, int]],
    due: float,
    token: int,
) -> list[tuple[Claim, Row]]:
    select = "SELECT id, key, body, headers, time FROM messages WHERE seq = ?"
    taken = [
        (Claim(seq, token, attempts + 1, key), c.execute(select, (seq,)).fetchone())
        for seq, key, attempts in chosen
    ]
    c.executemany("DELETE FROM ready WHERE gid = ? AND seq = ?", [(gid, x[0]) for x in chosen])
    _lease(c, gid, (x for x, _ in taken), due)
    return taken


def _take_new(
    c: sqlite3.Connection,
    gid: int,
    keys: KeyFilter,
    limit: int,
    now: float,
    lease: float,
    token: int,
) -> list[tuple[Claim, Row]]:
    """Lease messages the group has not looked at; those that do not match wait for others."""
    found = c.execute("SELECT cursor FROM groups WHERE gid = ?", (gid,)).fetchone()
    if found is None:
        raise GroupGoneError
    (cursor,) = found
    first = cursor
    taken: list[tuple[Claim, Row]] = []
    skipped: list[tuple[int, int, str, int]] = []
    late: list[tuple[int, int, float, int]] = []
    rows = c.execute(
        "SELECT seq, visible, id, key, body, headers, time FROM messages"
        " WHERE seq > ? ORDER BY seq LIMIT ?",
        (cursor, SCAN_LIMIT),
    )
    for row in rows:
        cursor, visible, key = row[0], row[1], row[3]
        if visible is None:
            continue
        if visible > now:
            late.append((gid, cursor, visible, 0))
        elif keys.matches(key):
            taken.append((Claim(cursor, token, 1, key), row[2:]))
            if len(taken) == limit:
                break
        else:
            skipped.append((gid, cursor, key, 0))
    rows.close()
    c.executemany("INSERT INTO delayed VALUES (?, ?, ?, ?)", late)
    c.executemany("INSERT INTO ready VALUES (?, ?, ?, ?)", skipped)
    if len(taken) == cursor - first:
        c.execute(
            "INSERT INTO leased SELECT ?, seq, ?, ?, 1 FROM messages WHERE seq BETWEEN ? AND ?",
            (gid, token, now + lease, first + 1, cursor),
        )
    else:
        _lease(c, gid, (x for x, _ in taken), now + lease)
    c.execute("UPDATE groups SET cursor = ? WHERE gid = ?", (cursor, gid))
    return taken


def _lease(c: sqlite3.Connection, gid: int, claims: Iterable[Claim], due: float) -> None:
    c.executemany(
        "INSERT INTO leased VALUES (?, ?, ?, ?, ?)",
        [(gid, seq, token, due, attempt) for seq, token, attempt, _ in claims],
    )


def give_back(c: sqlite3.Connection, gid: int, token: int) -> None:
    """Release all of a claim that its consumer did not live to receive."""
    c.execute(
        "INSERT INTO ready SELECT l.gid, l.seq, m.key, l.attempts - 1 FROM leased l"
        " JOIN messages m USING (seq) WHERE l.gid = ? AND l.token = ?",
        (gid, token),
    )
    c.execute("DELETE FROM leased WHERE gid = ? AND token = ?", (gid, token))


# -- settling ------------------------------------------------------------------------------


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
        seq, _, attempt, key = delivery.receipt
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
    forget(c, done)
    return sorted(lost)


def _lost(c: sqlite3.Connection, gid: int, claims: Sequence[Claim]) -> set[int]:
    """Return the positions of claims whose lease has ended, or that come a second time."""
    by_token: dict[int, list[int]] = {}
    for seq, token, _, _ in claims:
        by_token.setdefault(token, []).append(seq)
    runs = [(gid, *run, token) for token, seqs in by_token.items() for run in _runs(seqs)]
    held = "FROM leased WHERE gid = ? AND seq BETWEEN ? AND ? AND token = ?"
    # Counting is cheap, and nearly always there are as many as claims.
    if sum(c.execute(f"SELECT count(*) {held}", run).fetchone()[0] for run in runs) == len(claims):
        return set()
    owned = set(chain.from_iterable(c.execute(f"SELECT seq, token {held}", run) for run in runs))
    lost: set[int] = set()
    for position, (seq, token, _, _) in enumerate(claims):
        if (seq, token) in owned:
            owned.remove((seq, token))
        else:
            lost.add(position)
    return lost


def _bury(c: sqlite3.Connection, gid: int, taken: Claim, reason: str) -> None:
    query = "SELECT id, key, body, headers, time FROM messages WHERE seq = ?"
    id_, key, body, headers, published = c.execute(query, (taken.seq,)).fetchone()
    own = json.loads(headers) if headers else {}
    why = dead_headers(own, reason=reason, attempts=taken.attempt, id=id_, key=key)
    c.execute(
        "INSERT INTO dead VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (gid, taken.seq, id_, key, body, headers, published, taken.attempt, json.dumps(why)),
    )


def forget(c: sqlite3.Connection, seqs: Iterable[int]) -> None:
    """Delete messages that a group has just settled, if every other group has too."""
    (groups,) = c.execute("SELECT count(*) FROM groups").fetchone()
    query = "DELETE FROM messages WHERE seq BETWEEN ? AND ?"
    if groups > 1:
        query += f" AND {SETTLED_BY_ALL}"
    c.executemany(query, _runs(seqs))


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
