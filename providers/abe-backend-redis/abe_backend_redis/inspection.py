"""Looking and cleaning up: page by page, so that no call holds up the broker."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Set
from contextlib import suppress

from abe.backends.message_queue.base import BaseBackend, KeyFilter, Message
from abe.errors import ConfigurationError
from abe.types import ConsumerGroup, KeyStats, QueueStats
from abe_backend_redis import scripts
from abe_backend_redis.codec import (
    deliveries,
    group_name,
    lua_patterns,
    read_letter,
    stored_group,
)
from abe_backend_redis.failures import GroupMissingError
from abe_backend_redis.link import Link

__all__ = ["Inspection"]

PAGE = 500


class Inspection(BaseBackend):
    """The part of a backend that looks, counts and cleans up."""

    _control: Link
    _base: str
    """What every Redis key of the namespace begins with."""

    async def _peek(self, keys: KeyFilter, group: ConsumerGroup, limit: int) -> list[Message]:
        name, patterns = stored_group(group), lua_patterns(keys)
        found: list[Message] = []
        phase, start = b"ready", b"0"
        while len(found) < limit and phase != b"end":
            phase, start, flat, extras = await self._control.run(
                scripts.PEEK, name, limit - len(found), patterns, phase, start
            )
            found += [delivery.message for delivery in deliveries("", flat, extras)[0]]
        return found

    async def _groups(self) -> list[ConsumerGroup]:
        return [group_name(name) for name in await self._control.run(scripts.GROUPS)]

    async def _stats(self) -> QueueStats:
        """Count page by page: numbers that change meanwhile may not belong to one moment."""
        names = await self._control.run(scripts.GROUPS)
        if not names:
            return QueueStats(
                tuple(await self._count(stored_group(None).encode(), b"stream", b"-"))
            )
        entries: list[KeyStats] = []
        for name in names:
            with suppress(GroupMissingError):  # deleted meanwhile
                entries += await self._count(name, b"ready", b"0")
        return QueueStats(tuple(entries))

    async def _count(self, group: bytes, phase: bytes, start: bytes) -> list[KeyStats]:
        numbers: defaultdict[str, defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
        oldest: dict[str, float] = {}
        final = b""
        while phase != b"end":
            phase, start, final, flat = await self._control.run(
                scripts.COUNT, group, phase, start, final
            )
            for key_, column, number, since in zip(*[iter(flat)] * 4, strict=True):
                key = key_.decode()
                numbers[key][column.decode()] += number
                if column != b"dead":
                    oldest[key] = min(oldest.get(key, since / 1000), since / 1000)
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

    async def _dead_letters(self, group: ConsumerGroup, limit: int) -> list[Message]:
        found: list[Message] = []
        start = b"-"
        dead = f"{self._base}dead:{stored_group(group)}"
        while len(found) < limit:
            count = min(PAGE, limit - len(found))
            page = await self._control.call("XRANGE", dead, start, "+", "COUNT", count)
            for id_, row in page:
                start = b"(" + id_
                found.append(read_letter(dict(zip(row[::2], row[1::2], strict=True))))
            if len(page) < count:
                break
        return found

    async def _replay(self, group: ConsumerGroup, ids: Set[str] | None, limit: int) -> int:
        left, start, final = limit, b"-", b""
        while left > 0 and start and ids != set():
            start, final, number = await self._control.run(
                scripts.REPLAY, stored_group(group), left, start, final, *(ids or ())
            )
            left -= number
        return limit - left

    async def _purge(self, keys: KeyFilter, group: ConsumerGroup) -> int:
        name, patterns = stored_group(group), lua_patterns(keys)
        phase, start, final = b"later", b"0", b""
        count = 0
        with suppress(GroupMissingError):  # deleted meanwhile
            while phase != b"end":
                phase, start, final, number = await self._control.run(
                    scripts.PURGE, name, patterns, "purge-0", phase, start, final
                )
                count += number
        return count

    async def _delete_group(self, name: ConsumerGroup) -> None:
        if name not in await self._groups():
            raise ConfigurationError(f"there is no group {name!r}")
        await self._purge(KeyFilter(), name)
        most = PAGE
        while not await self._control.run(scripts.DELETE, stored_group(name), most):
            most = min(most * 2, 3_000)  # or busy publishers could keep it going for ever
