"""Looking and cleaning up: page by page, so that no call holds up the broker."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress

from abe.backends.message_queue.base import BaseBackend, KeyFilter, Message, validate_group
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


class Inspection(BaseBackend):
    """The part of a backend that looks, counts and cleans up."""

    _control: Link
    _base: str
    """What every Redis key of the namespace begins with."""
    _keep: int
    """1 if settled messages are kept for later groups."""

    async def peek(
        self,
        keys: Sequence[str] | str | None = None,
        *,
        group: ConsumerGroup = None,
        limit: int = 10,
    ) -> list[Message]:
        """Return up to ``limit`` messages that ``group`` could take now, oldest first.

        For a group that does not exist: what it would see.
        """
        self._bind()
        name, patterns = stored_group(validate_group(group)), lua_patterns(KeyFilter(keys))
        found: list[Message] = []
        start = b""
        while len(found) < limit:
            start, flat, extras = await self._control.run(
                scripts.PEEK, name, limit - len(found), start, *patterns
            )
            found += [delivery.message for delivery in deliveries("", flat, extras)[0]]
            if not start:
                break
        return found

    async def groups(self) -> list[ConsumerGroup]:
        """Return the groups that exist; ``None`` stands for the default group."""
        self._bind()
        return [group_name(name) for name in await self._stored_groups()]

    async def _stored_groups(self) -> list[bytes]:
        log = f"{self._base}log"
        if not await self._control.call("EXISTS", log):
            return []
        rows = await self._control.call("XINFO", "GROUPS", log)
        return [dict(zip(row[::2], row[1::2], strict=True))[b"name"] for row in rows]

    async def stats(self) -> QueueStats:
        """Return the backlog of every key and group; retained ones under ``None``.

        Counted page by page, without holding up the broker: numbers that change meanwhile may
        not belong to one moment.
        """
        self._bind()
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
            phase, start, final, flat = await self._control.run(
                scripts.COUNT, group, phase, start, final
            )
            for key_, column, number, id_ in zip(*[iter(flat)] * 4, strict=True):
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

    async def dead_letters(self, *, group: ConsumerGroup = None, limit: int = 100) -> list[Message]:
        """Return up to ``limit`` dead letters of ``group``, oldest first.

        Their headers ``abe-dead-…`` say why.
        """
        self._bind()
        found: list[Message] = []
        start = b"-"
        dead = f"{self._base}dead:{stored_group(validate_group(group))}"
        while len(found) < limit:
            count = min(PAGE, limit - len(found))
            page = await self._control.call("XRANGE", dead, start, "+", "COUNT", count)
            for id_, row in page:
                start = b"(" + id_
                found.append(read_letter(dict(zip(row[::2], row[1::2], strict=True))))
            if len(page) < count:
                break
        return found

    async def replay(
        self,
        *,
        group: ConsumerGroup = None,
        ids: Iterable[str] | None = None,
        limit: int | None = None,
    ) -> int:
        """Put the dead letters that there are back for ``group`` alone, as never delivered.

        Returns:
            How many were put back.
        """
        self._bind()
        name = stored_group(validate_group(group))
        wanted = None if ids is None else [ids] if isinstance(ids, str) else list(ids)
        left = ALL if limit is None else limit
        count, start, final = 0, b"-", b""
        while left > 0 and start and wanted != []:
            start, final, number = await self._control.run(
                scripts.REPLAY, name, left, start, final, *(wanted or ())
            )
            count += number
            left -= number
        return count

    async def purge(
        self, keys: Sequence[str] | str | None = None, *, group: ConsumerGroup = None
    ) -> int:
        """Drop what waits for ``group`` now, delayed messages included, not what is in flight.

        While no group exists, retained messages are dropped. Dead letters stay.

        Returns:
            How many messages were dropped.
        """
        self._bind()
        name = stored_group(validate_group(group))
        phase, start, final = b"later", b"0", b""
        if not await self._stored_groups():
            phase, start = b"all", b"-"
        rest: tuple[str | int, ...] = ("purge-0", self._keep, *lua_patterns(KeyFilter(keys)))
        count = 0
        with suppress(GroupMissingError):  # deleted meanwhile
            while phase != b"end":
                phase, start, final, number = await self._control.run(
                    scripts.PURGE, name, phase, start, final, *rest
                )
                count += number
        return count

    async def delete_group(self, name: ConsumerGroup) -> None:
        """Forget a group, its backlog and its dead letters; its open streams fail.

        Raises:
            ConfigurationError: If there is no such group.
        """
        if validate_group(name) not in await self.groups():
            raise ConfigurationError(f"there is no group {name!r}")
        await self.purge(group=name)
        most = PAGE
        while not await self._control.run(scripts.DELETE, stored_group(name), self._keep, most):
            most = min(most * 2, 3_000)  # or busy publishers could keep it going for ever
