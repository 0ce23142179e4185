"""What publishing and consuming do to the file: functions of a connection, in a transaction."""

from __future__ import annotations

import json
import secrets
import sqlite3
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import count, islice, repeat
from typing import NamedTuple

from abe.backends.message_queue.base import KeyFilter, Outgoing
from abe.backends.message_queue.base.process import PerProcess
from abe.backends.message_queue.service.sqlite.content import COLUMNS, Batch, Claim, Row
from abe.types import ConsumerGroup

__all__ = ["GroupGoneError", "Nothing"]

SUSPECT_ATTEMPT = 3
"""From this attempt on a message is handed out alone: it may be what kills its consumers."""
SCAN_LIMIT = 10_000
"""Most new messages that one claim looks at, so that it does not hold up other processes."""
OPENED = 3600.0
"""Seconds for which the note of when a group was opened may be out of date."""
WIDTH = 150
"""Most values that one statement inserts; no SQLite has a lower limit than 999."""
EXPIRED = 1000
"""Most ids that one transaction forgets."""

MANY_KEYS = 64
"""With more matching keys ready than this, the backlog is read in order and filtered."""
FIRST_CHARACTER = "!"
AFTER_DOT = "/"
AFTER_ALL_KEYS = "\U0010ffff" * 51
"""Bounds of ranges of keys: what no key holds, or is longer than any."""

Queued = tuple[int, int]
"""Where a message stands, and how often it was delivered before."""

IN_HAND = {
    "leased": "leased t CROSS JOIN entries m ON m.seq BETWEEN t.first AND t.last",
    "delayed": "delayed t CROSS JOIN entries m USING (seq)",
}
"""The messages of the tables that name no keys."""


class GroupGoneError(Exception):
    """The group does not exist any more."""


class Nothing(NamedTuple):
    """There is nothing to claim; the next delay or lease of the group ends in ``pause`` seconds."""

    pause: float | None


# -- publishing ----------------------------------------------------------------------------


def _new_ids() -> Iterator[str]:
    """Return ids that no other process, before or after, gives."""
    prefix = secrets.token_hex(8)
    return (f"{prefix}-{n:x}" for n in count(1))


_ids = PerProcess(_new_ids)


def publish(c: sqlite3.Connection, items: Sequence[Outgoing], now: float) -> None:
    published = f"{time.time():.6f}"
    values: list[object] = []
    scheduled: list[tuple[int, str, float]] = []
    for n, ((key, body, headers, delay), id_) in enumerate(zip(items, _ids.get(), strict=False)):
        visible = 0.0
        if delay:
            visible = now + delay
            scheduled.append((n, id_, visible))
        text = json.dumps(headers) if headers else "null"
        values += key, visible, f'["{id_}",{published},{text},{body}]'
    # Many rows to a statement, because the interpreter changes hands for each.
    for n in range(0, len(values), WIDTH):
        some = values[n : n + WIDTH]
        rows = ", ".join(["(?, ?, ?)"] * (len(some) // 3))
        c.execute(f"INSERT INTO entries (key, visible, content) VALUES {rows}", some)  # noqa: S608
    if scheduled:
        (first,) = c.execute("SELECT max(seq) - ? + 1 FROM entries", (len(items),)).fetchone()
        c.execute(
            "DELETE FROM ids WHERE id IN (SELECT id FROM ids WHERE until <= ? LIMIT ?)",
            (now, EXPIRED),
        )
        c.executemany(
            "INSERT INTO ids VALUES (?, ?, ?)",
            [(id_, first + n, visible) for n, id_, visible in scheduled],
        )


# -- consuming -----------------------------------------------------------------------------


def open_group(c: sqlite3.Connection, group: ConsumerGroup) -> int:
    gid = gid_of(c, group)
    if gid is None:
        gid = secrets.randbits(47)  # six bytes in every row
        c.execute("INSERT INTO groups (gid, name, cursor) VALUES (?, ?, 0)", (gid, group or ""))
    c.execute("UPDATE groups SET opened = ? WHERE gid = ?", (time.time(), gid))
    return gid


def opened(c: sqlite3.Connection, group: ConsumerGroup) -> int | None:
    """Return what `open_group` would, unless it would change anything."""
    query = "SELECT gid FROM groups WHERE name = ? AND opened > ?"
    row = c.execute(query, (group or "", time.time() - OPENED)).fetchone()
    return None if row is None else int(row[0])


def gid_of(c: sqlite3.Connection, group: ConsumerGroup) -> int | None:
    row = c.execute("SELECT gid FROM groups WHERE name = ?", (group or "",)).fetchone()
    return None if row is None else int(row[0])


def glance(c: sqlite3.Connection, gid: int, keys: KeyFilter, now: float) -> Nothing | None:
    """Return `Nothing` if a claim would take nothing, ``None`` if it may take something."""
    news, lapse, delay = c.execute(
        "SELECT (SELECT cursor FROM groups WHERE gid = :gid)"
        " < (SELECT coalesce(max(seq), 0) FROM entries),"
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
    seconds: float,
    token: int,
) -> Batch:
    """Lease up to ``limit`` messages, in publish order; a suspect comes alone."""
    advance(c, gid, now)
    queued = ready(c, gid, keys, limit)
    new: tuple[int, int] | None = None
    if len(queued) < limit and not _suspect(queued):
        new = _pass_run(c, gid, keys, limit - len(queued), now)
        looks = SCAN_LIMIT if new is None else 0
        step = SCAN_LIMIT if keys else limit
        while len(queued) < limit and looks > 0 and pass_over(c, gid, now, step):
            queued = ready(c, gid, keys, limit)
            looks -= step
    if suspect := _suspect(queued):
        queued = queued[: max(1, suspect - 1)]
    taken = runs(queued)
    c.executemany(
        "DELETE FROM ready WHERE gid = ? AND seq BETWEEN ? AND ?",
        [(gid, first, last) for first, last, _ in taken],
    )
    if new is not None:
        first, last = new
        queued += zip(range(first, last + 1), repeat(0))
        taken.append((first, last, 0))
    claims = [Claim(seq, token, attempts + 1) for seq, attempts in queued]
    lease(c, gid, token, now + seconds, [(first, last, n + 1) for first, last, n in taken])
    return _read(c, gid, claims)


def _suspect(queued: Sequence[Queued]) -> int:
    """Return which is the first suspect, counted from 1; 0 if none is."""
    found = (n for n, (_, attempts) in enumerate(queued, 1) if attempts + 1 >= SUSPECT_ATTEMPT)
    return next(found, 0)


def _read(c: sqlite3.Connection, gid: int, claims: Sequence[Claim]) -> Batch:
    """Return what was leased: one row, because the interpreter changes hands for each."""
    if not claims:
        return Batch()
    between = (gid, claims[0].seq, claims[-1].seq)
    query = (
        "SELECT group_concat(key, ' '), CAST(group_concat(content) AS BLOB)"  # noqa: S608
        f" FROM (SELECT key, content FROM {IN_HAND['leased']}"
        " WHERE t.gid = ? AND t.first BETWEEN ? AND ? AND t.token = ? ORDER BY t.first, m.seq)"
    )
    try:
        joined, content = c.execute(query, (*between, claims[0].token)).fetchone()
    except sqlite3.DataError:  # more than a gigabyte
        joined, content = "", b""
    begun = c.execute(
        "SELECT seq, number FROM begun WHERE gid = ? AND seq BETWEEN ? AND ?", between
    )
    return Batch(claims, joined, content, dict(begun))


def singly(c: sqlite3.Connection, claims: Iterable[Claim]) -> list[tuple[Claim, Row]]:
    """Return each message of a `Batch` by itself."""
    query = f"SELECT {COLUMNS} FROM entries WHERE seq = ?"  # noqa: S608
    found = [(it, c.execute(query, (it.seq,)).fetchone()) for it in claims]
    return [it for it in found if it[1] is not None]  # others' by now, and done


def advance(c: sqlite3.Connection, gid: int, now: float) -> None:
    """Make ready what is due: delays that are over, leases that have lapsed."""
    for table in IN_HAND:
        due = f"FROM {table} WHERE gid = ? AND due <= ?"
        if c.execute(f"SELECT 1 {due}", (gid, now)).fetchone() is not None:
            c.execute(
                "INSERT INTO ready SELECT t.gid, m.seq, m.key, t.attempts"  # noqa: S608
                f" FROM {IN_HAND[table]} WHERE t.gid = ? AND t.due <= ?",
                (gid, now),
            )
            c.execute(f"DELETE {due}", (gid, now))


def ready(c: sqlite3.Connection, gid: int, keys: KeyFilter, limit: int) -> list[Queued]:
    """Return the ready messages that pass the filter, in publish order."""
    if not keys:
        return _queued(c, "SELECT seq, attempts FROM ready WHERE gid = ?", (gid,), limit)
    with closing(ready_keys(c, gid, keys)) as waiting:
        matching = set(islice(waiting, MANY_KEYS + 1))
    if len(matching) <= MANY_KEYS:
        query = " UNION ALL ".join([OF_KEY] * len(matching))
        return _queued(c, query, [x for key in matching for x in (gid, key)], limit)
    query = "SELECT seq, attempts, key FROM ready WHERE gid = ? ORDER BY seq"
    with closing(c.execute(query, (gid,))) as rows:
        return list(islice((row[:2] for row in rows if keys.matches(row[2])), limit))


OF_KEY = "SELECT seq, attempts FROM ready INDEXED BY ready_by_key WHERE gid = ? AND key = ?"
"""Left alone, SQLite reads the whole backlog, which has the right order, instead of the index."""


def _queued(
    c: sqlite3.Connection, query: str, values: Sequence[object], limit: int
) -> list[Queued]:
    """Return what ``query`` finds, in publish order: in one row, as in `_read`."""
    if not query:
        return []
    (text,) = c.execute(
        f"SELECT group_concat(seq || ' ' || attempts, ' ') FROM ({query} ORDER BY seq LIMIT ?)",  # noqa: S608
        (*values, limit),
    ).fetchone()
    numbers = map(int, (text or "").split())
    return list(zip(numbers, numbers, strict=True))


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


def _pass_run(
    c: sqlite3.Connection, gid: int, keys: KeyFilter, limit: int, now: float
) -> tuple[int, int] | None:
    """Move the cursor over the next messages, if all are consecutive, due and match.

    Returns:
        The first and the last; ``None`` if that is not so, or there are none.

    Raises:
        GroupGoneError: If the group was deleted.
    """
    joined = "group_concat(key, ' ')" if keys else "NULL"
    first, last, number, due, joined = c.execute(
        f"SELECT min(seq), max(seq), count(*), total(visible <= ?), {joined} FROM"  # noqa: S608
        " (SELECT seq, visible, key FROM entries WHERE seq > ? ORDER BY seq LIMIT ?)",
        (now, _cursor(c, gid), limit),
    ).fetchone()
    if not number or not due == number == last - first + 1:
        return None
    if keys and not all(map(keys.matches, set(joined.split(" ")))):
        return None
    c.execute("UPDATE groups SET cursor = ? WHERE gid = ?", (last, gid))
    return first, last


def pass_over(c: sqlite3.Connection, gid: int, now: float, limit: int) -> int:
    """Move the cursor over new messages, which then wait for the group.

    Returns:
        Where the cursor is then; 0 if there were none.

    Raises:
        GroupGoneError: If the group was deleted.
    """
    cursor = _cursor(c, gid)
    query = "SELECT max(seq) FROM (SELECT seq FROM entries WHERE seq > ? ORDER BY seq LIMIT ?)"
    (last,) = c.execute(query, (cursor, limit)).fetchone()
    if last is None:
        return 0
    for table, columns, due in (("ready", "key, 0", "<="), ("delayed", "visible, 0", ">")):
        c.execute(
            f"INSERT INTO {table} SELECT ?, seq, {columns} FROM entries"  # noqa: S608
            f" WHERE seq > ? AND seq <= ? AND visible {due} ?",
            (gid, cursor, last, now),
        )
    c.execute("UPDATE groups SET cursor = ? WHERE gid = ?", (last, gid))
    return int(last)


def _cursor(c: sqlite3.Connection, gid: int) -> int:
    row = c.execute("SELECT cursor FROM groups WHERE gid = ?", (gid,)).fetchone()
    if row is None:
        raise GroupGoneError
    return int(row[0])


Run = tuple[int, int, int]
"""The first and the last of consecutive messages, and how often they were delivered."""


def runs(queued: Iterable[Queued]) -> list[Run]:
    found: list[Run] = []
    first, after, of = 0, 0, -1
    for seq, attempts in queued:
        if seq != after or attempts != of:
            if after:
                found.append((first, after - 1, of))
            first, of = seq, attempts
        after = seq + 1
    if after:
        found.append((first, after - 1, of))
    return found


def lease(c: sqlite3.Connection, gid: int, token: int, due: float, leased: Iterable[Run]) -> None:
    c.executemany(
        "INSERT INTO leased (gid, first, last, token, due, attempts) VALUES (?, ?, ?, ?, ?, ?)",
        [(gid, first, last, token, due, attempts) for first, last, attempts in leased],
    )


def give_back(c: sqlite3.Connection, gid: int, token: int) -> None:
    """Release all of a claim that its consumer did not live to receive."""
    c.execute(
        "INSERT INTO ready SELECT t.gid, m.seq, m.key, t.attempts - 1"  # noqa: S608
        f" FROM {IN_HAND['leased']} WHERE t.gid = ? AND t.token = ?",
        (gid, token),
    )
    c.execute("DELETE FROM leased WHERE gid = ? AND token = ?", (gid, token))
