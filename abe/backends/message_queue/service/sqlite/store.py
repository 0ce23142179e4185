"""What publishing and consuming do to the file: functions of a connection, in a transaction."""

from __future__ import annotations

import heapq
import json
import secrets
import sqlite3
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import count, islice
from typing import NamedTuple

from abe.backends.message_queue.base import (
    KeyFilter,
    Message,
    Outgoing,
    decode_payload,
    raw_payload,
)
from abe.backends.message_queue.base.process import PerProcess
from abe.errors import PayloadError
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

COLUMNS = "id, key, CAST(body AS BLOB), headers, time"
"""Bytes, because text that is not UTF-8 would fail the whole statement."""
Row = tuple[str, str, bytes, str | None, float]


class GroupGoneError(Exception):
    """The group does not exist any more."""


class Claim(NamedTuple):
    """The lease of a message.

    Attributes:
        seq: Its position in publish order.
        token: Proof of ownership, new for every claim.
        attempt: Which delivery this is.
        key: The message's key.
        begun: How often its handling had begun before.
    """

    seq: int
    token: int
    attempt: int
    key: str
    begun: int = 0


class Nothing(NamedTuple):
    """There is nothing to claim.

    Attributes:
        pause: Seconds until the next delay or lease of the group ends, if any does.
    """

    pause: float | None


def message_of(row: Row, attempt: int = 1) -> Message:
    """Return a stored message as consumers see it.

    Raises:
        PayloadError: If this process cannot decode it.
    """
    id_, key, body, headers, published = row
    try:
        text = body.decode()
        decoded = json.loads(headers) if headers else {}
    except ValueError as error:
        raise PayloadError(f"the message is not JSON: {error}") from error
    return Message(decode_payload(text), id_, key, published, attempt, decoded)


def shown(row: Row, attempt: int) -> Message:
    """Return a stored message for somebody who looks, in any case."""
    try:
        return message_of(row, attempt)
    except PayloadError:
        id_, key, body, headers, published = row
        return Message(raw_payload(body), id_, key, published, attempt, headers_of(headers))


def headers_of(text: str | None) -> dict[str, str]:
    try:
        headers = json.loads(text or "{}")
    except ValueError:
        return {}
    return headers if isinstance(headers, dict) else {}


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
        if next(waiting, None) is not None:
            return None
    return Nothing(None if due is None else due - now)


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
    if not chosen:
        return []
    select = f"SELECT {COLUMNS} FROM messages WHERE seq = ?"  # noqa: S608
    between = (gid, chosen[0][0], chosen[-1][0])
    begun: dict[int, int] = dict(
        c.execute("SELECT seq, number FROM begun WHERE gid = ? AND seq BETWEEN ? AND ?", between)
    )
    taken = [
        (
            Claim(seq, token, attempts + 1, key, begun.get(seq, 0)),
            c.execute(select, (seq,)).fetchone(),
        )
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
        f"SELECT seq, visible, {COLUMNS} FROM messages"  # noqa: S608
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
        [(gid, seq, token, due, attempt) for seq, token, attempt, *_ in claims],
    )


def give_back(c: sqlite3.Connection, gid: int, token: int) -> None:
    """Release all of a claim that its consumer did not live to receive."""
    c.execute(
        "INSERT INTO ready SELECT l.gid, l.seq, m.key, l.attempts - 1 FROM leased l"
        " JOIN messages m USING (seq) WHERE l.gid = ? AND l.token = ?",
        (gid, token),
    )
    c.execute("DELETE FROM leased WHERE gid = ? AND token = ?", (gid, token))
