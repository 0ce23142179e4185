"""`RedisBackend`: message queues on Redis Streams."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import replace
from typing import ClassVar, Self

from abe.backends.message_queue.base import (
    COMPLETE,
    BaseBackend,
    KeyFilter,
    Message,
    Outgoing,
    check_settings,
    log,
    naming_variables,
    read_settings,
)
from abe.errors import AbeError, ConfigurationError
from abe.types import ConsumerGroup, KeyStats, QueueStats
from abe_backend_redis import scripts
from abe_backend_redis.codec import deliveries, group_name, lua_patterns, read_letter, stored_group
from abe_backend_redis.failures import GroupMissingError
from abe_backend_redis.link import Link
from abe_backend_redis.publisher import Limits, RedisPublisher
from abe_backend_redis.receiver import RedisReceiver, Shared
from abe_backend_redis.server import Server
from abe_backend_redis.settings import DEFAULT_PREFIX, DEFAULT_URL, SETTINGS

__all__ = ["RedisBackend"]

logger = logging.getLogger(__name__)

PAGE = 500
"""Dead letters read, and messages deleted with a group, at once."""


class RedisBackend(BaseBackend):
    """A durable queue on Redis 6.2 or later: one stream for each key, one index for all.

    Everything of a prefix lies in one hash slot, so that every change is atomic, in a Cluster too.
    What Redis keeps through a crash is what its own persistence keeps: with ``appendonly yes`` and
    ``appendfsync always`` that is everything for which ``publish`` has returned.

    Args:
        url: ``redis://``, ``rediss://``, ``unix://``, ``redis+sentinel://`` or
            ``redis+cluster://``.
        prefix: Namespace: backends with different prefixes know nothing of each other.
        username: ACL user; overrides the URL's.
        password: Overrides the URL's.
        tls: Arguments of redis-py for TLS: ``ssl_ca_certs``, ``ssl_certfile``, ``ssl_keyfile``.
        sentinel_username: ACL user of the Sentinels.
        sentinel_password: Password of the Sentinels.
        lease: Seconds after which a message that is neither settled nor extended comes back.
        timeout: Seconds to wait for a connection, and for each answer.
        publish_timeout: Seconds for which ``publish`` tries to reach the broker.
        limits: What the broker may hold, and what it retains for later groups.

    Raises:
        ConfigurationError: If an argument is malformed.
    """

    name: ClassVar[str] = "redis"
    max_prefetch: ClassVar[int] = 512  # more would leave the processor's cache
    settings = SETTINGS

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        prefix: str = DEFAULT_PREFIX,
        username: str | None = None,
        password: str | None = None,
        tls: Mapping[str, str] | None = None,
        sentinel_username: str | None = None,
        sentinel_password: str | None = None,
        lease: float = 30.0,
        timeout: float = 5.0,
        publish_timeout: float = 10.0,
        limits: Limits = Limits(),  # noqa: B008 - immutable
    ) -> None:
        super().__init__()
        given = {"prefix": prefix, "lease": lease, "timeout": timeout}
        check_settings(self.settings, **given, publish_timeout=publish_timeout)
        self._server = Server(
            url,
            username=username,
            password=password,
            tls=tls,
            sentinel_username=sentinel_username,
            sentinel_password=sentinel_password,
        )
        self.prefix = prefix
        self.capabilities = replace(COMPLETE, durable=True, lease=lease)
        self._timeout = timeout
        self._limits = limits
        # Braces: the part of a key that decides on its slot in a Cluster.
        self._base = f"{{{prefix}}}:"
        self._control = self._link()
        self._shared = Shared(
            self._control,
            self._base,
            lease,
            self._open_groups,
            self._check_eviction,
            defaultdict(dict),
        )
        self._publisher = RedisPublisher(
            self._link(), limits, publish_timeout, prefix, self._open_groups
        )
        self.warnings: list[str] = []
        """What is wrong with the server's settings, as far as is known; ``abe doctor`` shows it."""
        self._checked = False
        if limits.drop:
            log(
                logger,
                logging.WARNING,
                "backend redis, prefix %s: retention may drop messages that a group has not "
                "settled (ABE_REDIS_DROP_UNSETTLED)",
                prefix,
                extra={"backend": self.name},
            )

    @classmethod
    def from_env(cls) -> Self:
        """Create a backend from the variables in `settings`, without connecting.

        Raises:
            ConfigurationError: If a variable is malformed.
        """
        values = read_settings(cls.settings)
        files = {"ssl_ca_certs": "tls_ca", "ssl_certfile": "tls_cert", "ssl_keyfile": "tls_key"}
        tls = {name: values.pop(argument) for name, argument in files.items()}
        limits = ("max_backlog", "retain_length", "retain_age", "drop_unsettled")
        with naming_variables(cls.settings, tls="ABE_REDIS_TLS_…"):
            return cls(
                limits=Limits(*(values.pop(name) for name in limits)),
                tls={name: file for name, file in tls.items() if file},
                **values,
            )

    def __repr__(self) -> str:
        return f"RedisBackend({str(self._server)!r}, prefix={self.prefix!r})"

    def _link(self) -> Link:
        return Link(self._server, f"{self._base}log", self._timeout)

    async def _send(self, items: Sequence[Outgoing]) -> None:
        await self._publisher.send(items)

    def _receiver(self, group: ConsumerGroup, keys: KeyFilter) -> RedisReceiver:
        return RedisReceiver(self._link(), self._shared, group, keys)

    def _open_groups(self) -> list[str]:
        return sorted({stored_group(engine.group) for engine in self._subscriptions})

    async def _check_eviction(self) -> None:
        """Warn, once, of a server that deletes messages when its memory is full."""
        if self._checked:
            return
        self._checked = True
        try:
            answer: bytes = await self._control.call("INFO", "memory")
        except AbeError:  # a user need not have that right
            return
        rows = (row.partition(":") for row in answer.decode().splitlines())
        info = {name: value for name, _, value in rows}
        policy = info.get("maxmemory_policy", "")
        if policy.startswith("allkeys") and info.get("maxmemory") != "0":
            text = (
                "Redis deletes messages when its memory is full: its maxmemory-policy is "
                f"{policy}; set it to noeviction"
            )
            self.warnings.append(text)
            log(logger, logging.WARNING, "%s", text, extra={"backend": self.name})

    async def _disconnect(self) -> None:
        await self._publisher.aclose()
        await self._control.aclose(for_good=True)

    async def _ping(self) -> None:
        # Changes nothing, but only a server that may write runs it.
        await self._control.run(scripts.RECALL, stored_group(None))
        await self._check_eviction()

    # -- looking and cleaning up: page by page, so that no call holds up the broker --------

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
