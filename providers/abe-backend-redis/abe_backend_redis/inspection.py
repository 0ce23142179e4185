"""Looking and cleaning up: page by page, so that no call holds up the broker."""

from __future__ import annotations

import time
from collections import defaultdict
from contextlib import suppress

from abe.backends.message_queue.base import KeyFilter, Message
from abe.errors import ConfigurationError
from abe.types import ConsumerGroup, KeyStats, QueueStats
from abe_backend_redis import scripts
from abe_backend_redis.codec import (
    deliveries,
    group_name,
    lua_patterns,
    published,
    read_letter,
    stored_group,
)
from abe_backend_redis.failures import GroupMissingError
from abe_backend_redis.link import Link

__all__ = ["Inspection"]

PAGE = 500
ALL = 2**31


class Inspection:
    """Numbers, looks and clean-ups of a namespace.

    Args:
        link: The connection to use.
        base: What every Redis key of the namespace begins with.
        keep: Whether settled messages are kept for later groups.
    """

    def __init__(self, link: Link, base: str, keep: bool) -> None:
        self._link = link
        self._base = base
        self._keep = int(keep)

    async def peek(self, group: ConsumerGroup, keys: KeyFilter, limit: int) -> list[Message]:
        """Return what ``group`` could take now."""
        found: list[Message] = []
        start = b""
        while len(found) < limit:
            start, flat, extras = await self._link.run(
                scripts.PEEK, stored_group(group), limit - len(found), start, *lua_patterns(keys)
            )
            found += [delivery.message for delivery in deliveries("", flat, extras)[0]]
            if not start:
                break
        return found

    async def groups(self) -> list[ConsumerGroup]:
        """Return the groups that exist."""
        return [group_name(name) for name in await self._stored_groups()]

    async def _stored_groups(self) -> list[bytes]:
        log = f"{self._base}log"
        if not await self._link.call("EXISTS", log):
            return []
        rows = await self._link.call("XINFO", "GROUPS", log)
        return [dict(zip(row[::2], row[1::2], strict=True))[b"name"] for row in rows]

    async def stats(self) -> QueueStats:
        """Count what every group has before it."""
        names = await self._stored_groups()
        if not names:
            return QueueStats(tuple(await self._count(stored_group(None).encode(), b"log")))
        entries: list[KeyStats] = []
        for name in names:
            with suppress(GroupMissingError):  # deleted meanwhile
                entries += await self._count(name, b"ready")
        return QueueStats(tuple(entries))

    async def _count(self, group: bytes, phase: bytes) -> list[KeyStats]:
        numbers: defaultdict[str, defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
        oldest: dict[str, float] = {}
        start, final = b"-", b""
        while phase != b"end":
            phase, start, final, flat = await self._link.run(
                scripts.COUNT, group, phase, start, final
            )
            rows = iter(flat)
            for key_, column, number, id_ in zip(*[rows] * 4, strict=True):
                key = key_.decode()
                numbers[key][column.decode()] += number
                if id_:
                    when = published(id_.decode())
                    oldest[key] = min(oldest.get(key, when), when)
        now = time.time()
        return [
            KeyStats(
                key=key,
                group=group_name(group),
                ready=found["ready"],
                in_flight=found["in_flight"],
                delayed=found["delayed"],
                dead=found["dead"],
                oldest_age=max(0.0, now - oldest[key]) if key in oldest else None,
            )
            for key, found in sorted(numbers.items())
        ]

    async def dead_letters(self, group: ConsumerGroup, limit: int) -> list[Message]:
        """Return dead letters, oldest first."""
        found: list[Message] = []
        start = b"-"
        dead = f"{self._base}dead:{stored_group(group)}"
        while len(found) < limit:
            count = min(PAGE, limit - len(found))
            page = await self._link.call("XRANGE", dead, start, "+", "COUNT", count)
            for id_, row in page:
                start = b"(" + id_
                found.append(read_letter(dict(zip(row[::2], row[1::2], strict=True))))
            if len(page) < count:
                break
        return found

    async def replay(self, group: ConsumerGroup, ids: list[str] | None, limit: int | None) -> int:
        """Publish dead letters again, for their group alone."""
        left = ALL if limit is None else limit
        count, start, final = 0, b"-", b""
        if ids == []:
            return 0
        while left > 0 and start:
            start, final, number = await self._link.run(
                scripts.REPLAY, stored_group(group), left, start, final, *(ids or ())
            )
            count += number
            left -= number
        return count

    async def purge(self, group: ConsumerGroup, keys: KeyFilter) -> int:
        """Drop what waits."""
        phase, start, final = b"later", b"0", b""
        if not await self._stored_groups():
            phase, start = b"all", b"-"
        rest: tuple[str | int, ...] = ("purge-0", self._keep, *lua_patterns(keys))
        count = 0
        with suppress(GroupMissingError):  # deleted meanwhile
            while phase != b"end":
                phase, start, final, number = await self._link.run(
                    scripts.PURGE, stored_group(group), phase, start, final, *rest
                )
                count += number
        return count

    async def delete_group(self, group: ConsumerGroup) -> None:
        """Forget a group."""
        if group not in await self.groups():
            raise ConfigurationError(f"there is no group {group!r}")
        await self.purge(group, KeyFilter())
        most = PAGE
        while not await self._link.run(scripts.DELETE, stored_group(group), self._keep, most):
            most = min(most * 2, 3_000)  # or busy publishers could keep it going for ever
