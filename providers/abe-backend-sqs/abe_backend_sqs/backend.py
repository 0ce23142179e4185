"""`SqsBackend`: message queues on Amazon SQS, with SNS topics as fan-out."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence, Set
from typing import ClassVar, Self

from abe.backends.message_queue.base import (
    Backoff,
    BaseBackend,
    Capabilities,
    KeyFilter,
    Message,
    Outgoing,
    Publisher,
    check_settings,
    naming_variables,
    read_settings,
)
from abe.errors import PayloadError, UnsupportedError
from abe.types import ConsumerGroup, KeyStats, QueueStats
from abe_backend_sqs.codec import Prepared, prepare
from abe_backend_sqs.dead_letters import DeadLetterQueue, purge
from abe_backend_sqs.link import Access, Link
from abe_backend_sqs.long_poll import LongPoller
from abe_backend_sqs.publisher import BATCH_BYTES, Target, may_retry
from abe_backend_sqs.queue import BATCH, Queue
from abe_backend_sqs.receiver import SqsReceiver
from abe_backend_sqs.resolver import QueueResolver, region_in
from abe_backend_sqs.settings import SETTINGS

__all__ = ["SqsBackend"]

LONGEST_DELAY = 900.0
LONGEST_NACK = 39_600.0
"""SQS hides a message for 12 h after its receipt at most; one of them may be spent holding it."""
RETRY = Backoff(first=0.05, maximum=1.0)
PARALLEL = 8
"""Batches on their way at a time, where their order does not matter."""
EVERY_KEY = "*"


class SqsBackend(BaseBackend):
    """A queue on SQS, standard or FIFO; with a topic, one queue for each group.

    Queues, topics and subscriptions are used as they are, never created.

    Args:
        queue: Name, URL or ARN of the queue; with a topic, of the default group's.
        topic: ARN of an SNS topic to publish to.
        groups: With a topic: those of the queue of each group.
        group_queue: With a topic: likewise, with ``{group}`` in it, for all other groups.
        endpoint: Where SQS and SNS are, if not at AWS.
        access: Region and credentials; what is left out is found the usual AWS way.
        dead_letters: Whether rejected messages go to the dead-letter queue that the redrive
            policy of each queue names; every queue must have one then.
        lease: Seconds, rounded up to whole ones, after which a message that is neither settled
            nor extended comes back: 1 to 1,800.
        wait: Seconds, rounded up to whole ones, for which SQS may hold back an answer while there
            are no messages: 1 to 20. Closing takes up to as long.
        timeout: Seconds to wait for a connection, and for each answer.
        publish_timeout: Seconds for which ``publish`` tries again what may pass.
        clock: Tells the time that leases are measured by, in seconds; for tests.

    Raises:
        ConfigurationError: If an argument is malformed.
    """

    name: ClassVar[str] = "sqs"
    settings = SETTINGS

    def __init__(
        self,
        queue: str | None = None,
        *,
        topic: str | None = None,
        groups: Mapping[str, str] | None = None,
        group_queue: str | None = None,
        endpoint: str | None = None,
        access: Access = Access(),  # noqa: B008 - immutable
        dead_letters: bool = False,
        lease: float = 30.0,
        wait: float = 5.0,
        timeout: float = 10.0,
        publish_timeout: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        given = {"lease": lease, "wait": wait, "timeout": timeout, "endpoint": endpoint}
        check_settings(self.settings, **given, publish_timeout=publish_timeout)
        self._lease = math.ceil(lease)
        self._wait = math.ceil(wait)
        self._link = Link(endpoint, access, timeout)
        self._resolver = QueueResolver(
            self._link, queue=queue, topic=topic, groups=groups or {}, template=group_queue
        )
        self._shown = topic or queue
        fifo = self._resolver.fifo
        self.capabilities = Capabilities(
            durable=True,
            groups=topic is not None,
            backlog=topic is None,
            keys="none",
            ordering="key" if fifo else "none",
            redelivery="message",
            release=True,
            reject=dead_letters,
            attempts="upper",
            lease=float(self._lease),
            delay=0.0 if fifo or topic else LONGEST_DELAY,
            nack_delay=LONGEST_NACK,
            headers=True,
            publish_many=True,
            stats=True,
            dead_letters=dead_letters,
            admin=not fifo,  # which hides what waits behind a message in flight
        )
        self._publish_timeout = publish_timeout
        self._clock = clock
        self._closing = asyncio.Event()
        self._publisher: Publisher[Prepared] | None = None
        self._sources: dict[str, tuple[LongPoller, DeadLetterQueue | None]] = {}

    @classmethod
    def from_env(cls) -> Self:
        """Create a backend from the variables in `settings`, without connecting.

        Raises:
            ConfigurationError: If a variable is malformed.
        """
        values = read_settings(cls.settings)
        own = {name: value for name, value in values.items() if not name.startswith("AWS_")}
        addresses = filter(None, (own["topic"], own["queue"]))
        region = own.pop("region") or next(filter(None, map(region_in, addresses)), None)
        with naming_variables(cls.settings):
            return cls(access=Access.from_env(region), **own)

    def __repr__(self) -> str:
        endpoint = self._link.endpoint()
        where = f", endpoint={endpoint!r}" if endpoint else ""
        return f"SqsBackend({self._shown!r}{where})"

    # -- publishing ------------------------------------------------------------------------

    async def _send(self, items: Sequence[Outgoing]) -> None:
        publisher, limit = await RETRY.retry(
            self._reach, timeout=self._publish_timeout, stop=self._closing
        )
        prepared = [prepare(item) for item in items]
        for n, item in enumerate(prepared):
            if item.size > limit:
                which = f"item {n}: " if len(items) > 1 else ""
                raise PayloadError(
                    f"{which}the message has {item.size} bytes with its key and headers; "
                    f"{self._shown} takes {limit}"
                )
        await publisher.send(prepared)

    async def _reach(self) -> tuple[Publisher[Prepared], int]:
        """Return what publishes, and the size of the largest message."""
        address, limit = self._resolver.topic, BATCH_BYTES
        if address is None:
            queue = await self._resolver.queue_of(None)
            address, limit = queue.url, queue.limit
        if self._publisher is None:
            target = Target(self._link, address, self._resolver)
            self._publisher = Publisher(
                target.send,
                max_items=BATCH,
                max_bytes=BATCH_BYTES,
                size=lambda item: item.size,
                max_handlers=1 if target.fifo else PARALLEL,
                timeout=self._publish_timeout,
                retry=may_retry,
            )
        return self._publisher, limit

    # -- consuming -------------------------------------------------------------------------

    def _receiver(self, group: ConsumerGroup, keys: KeyFilter) -> SqsReceiver:
        self._resolver.configured(group)

        async def find() -> tuple[LongPoller, DeadLetterQueue | None]:
            queue = await self._resolver.queue_of(group)
            if self._resolver.topic is not None:
                await self._resolver.check_subscription(queue)
            dead = await self._dead_letters_of(queue) if self.capabilities.dead_letters else None
            poller = LongPoller(queue, self._lease, self._wait)
            return self._sources.setdefault(queue.url, (poller, dead))

        return SqsReceiver(find, lease=self._lease, clock=self._clock)

    async def _dead_letters_of(self, queue: Queue) -> DeadLetterQueue:
        return DeadLetterQueue(queue, await self._resolver.dead_of(queue))

    async def _disconnect(self) -> None:
        self._closing.set()
        if self._publisher is not None:
            await self._publisher.aclose()
        for poller, _ in self._sources.values():
            await poller.aclose()
        await self._link.aclose()

    # -- looking and cleaning up -----------------------------------------------------------

    async def _ping(self) -> None:
        if self._resolver.topic is not None:
            await self._resolver.subscriptions()
        else:
            await (await self._resolver.queue_of(None)).count("")

    async def _stats(self) -> QueueStats:
        """Return what SQS estimates for the queue of every group; it does not count by key."""
        entries = []
        for group in await self._resolver.groups():
            queue = await self._resolver.queue_of(group)
            ready, in_flight, delayed = await queue.count("", "NotVisible", "Delayed")
            dead = None
            if self.capabilities.dead_letters:
                (dead,) = await (await self._resolver.dead_of(queue)).count("")
            counts = {"ready": ready, "in_flight": in_flight, "delayed": delayed, "dead": dead}
            entries.append(KeyStats(EVERY_KEY, group, **counts))
        return QueueStats(tuple(entries), approximate=True)

    async def _dead_letters(self, group: ConsumerGroup, limit: int) -> list[Message]:
        dead = await self._dead_letters_of(await self._resolver.queue_of(group))
        return await dead.list(limit)

    async def _replay(self, group: ConsumerGroup, ids: Set[str] | None, limit: int) -> int:
        dead = await self._dead_letters_of(await self._resolver.queue_of(group))
        return await dead.replay(ids, limit)

    async def _groups(self) -> list[ConsumerGroup]:
        return await self._resolver.groups()

    async def _delete_group(self, name: ConsumerGroup) -> None:
        """Delete its subscription, its queue, and its dead-letter queue unless it is shared."""
        if self._resolver.topic is None:
            raise UnsupportedError(
                "backend 'sqs' does not support delete_group() (capability 'groups'); without a "
                "topic purge() empties the queue"
            )
        await self._resolver.delete(name)

    async def _purge(self, keys: KeyFilter, group: ConsumerGroup) -> int:
        return await purge(await self._resolver.queue_of(group), keys)
