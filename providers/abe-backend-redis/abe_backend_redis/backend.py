"""`RedisBackend`: message queues on Redis Streams."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

from abe.backends.message_queue.base import (
    Capabilities,
    KeyFilter,
    Outgoing,
    check_settings,
    naming_variables,
    read_settings,
)
from abe.errors import AbeError
from abe.types import ConsumerGroup
from abe_backend_redis import scripts
from abe_backend_redis.codec import stored_group
from abe_backend_redis.inspection import Inspection
from abe_backend_redis.link import Link
from abe_backend_redis.publisher import Limits, RedisPublisher
from abe_backend_redis.receiver import RedisReceiver, Shared
from abe_backend_redis.server import Server
from abe_backend_redis.settings import DEFAULT_PREFIX, DEFAULT_URL, SETTINGS

__all__ = ["RedisBackend"]

logger = logging.getLogger(__name__)

YEAR = 365 * 86_400.0


class RedisBackend(Inspection):
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
        self.capabilities = _capabilities(lease)
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
            logger.warning(
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
                f"Redis deletes messages when its memory is full: its maxmemory-policy is {policy}"
            )
            self.warnings.append(f"{text}; set it to noeviction")
            logger.warning("%s; set it to noeviction", text, extra={"backend": self.name})

    async def _disconnect(self) -> None:
        await self._publisher.aclose()
        await self._control.aclose(for_good=True)

    async def _ping(self) -> None:
        # Changes nothing, but only a server that may write runs it.
        await self._control.run(scripts.RECALL, stored_group(None))
        await self._check_eviction()


def _capabilities(lease: float) -> Capabilities:
    return Capabilities(
        durable=True,
        groups=True,
        backlog=True,
        keys="consumer",
        ordering="consumer",
        redelivery="message",
        release=True,
        reject=True,
        attempts="exact",
        lease=lease,
        delay=YEAR,
        nack_delay=YEAR,
        headers=True,
        publish_many=True,
        peek=True,
        stats=True,
        dead_letters=True,
        admin=True,
    )
