"""A small correct backend in memory, on which the broken ones of the suite's self-test build.

It offers exactly what its ``CAPABILITIES`` claim, whatever they are, so that every case of the
suite applies to one of its variants. For tests of the suite; applications use ``memory``.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import ClassVar, Self

from abe.backends.message_queue.base import (
    COMPLETE,
    BaseBackend,
    Capabilities,
    Delivery,
    KeyFilter,
    Message,
    Outgoing,
    SettleFailure,
    Settlement,
    decode_payload,
    validate_group,
)
from abe.backends.message_queue.base.capabilities import unsupported
from abe.errors import ConfigurationError, ConnectionLostError
from abe.testing.harness import Harness
from abe.types import ConsumerGroup, QueueStats
from tests.selftest.store import Group, Lease, Store, Stored

__all__ = ["FULL", "ReferenceBackend", "ReferenceHarness", "ReferenceReceiver"]

FULL = replace(COMPLETE, durable=True, lease=30.0, delay=86_400.0, nack_delay=86_400.0)


class ReferenceBackend(BaseBackend):
    """Every capability, switched on and off by ``CAPABILITIES``."""

    name: ClassVar[str] = "reference"
    CAPABILITIES: ClassVar[Capabilities] = FULL
    STORE: ClassVar[type[Store]] = Store
    RECEIVER: ClassVar[type[ReferenceReceiver]]

    def __init__(
        self,
        store: Store | None = None,
        *,
        lease: float | None = None,
        maxsize: float = math.inf,
        reachable: bool = True,
    ) -> None:
        super().__init__()
        claimed = self.CAPABILITIES
        seconds = lease if claimed.lease is not None else None
        self.capabilities = replace(claimed, lease=seconds) if seconds is not None else claimed
        self.store = store if store is not None else self.STORE(claimed)
        self.maxsize = maxsize
        self.reachable = reachable

    @classmethod
    def from_env(cls) -> Self:
        """Create a backend with a store of its own."""
        return cls()

    async def _send(self, items: Sequence[Outgoing]) -> None:
        self.reach()
        self.restore_groups()
        self.store.publish(items, self.maxsize)

    def restore_groups(self) -> None:
        """Make the open groups again, should the store have lost them."""
        if not self.store.groups:
            for subscription in self._subscriptions:
                self.store.open_group(subscription.group, KeyFilter())

    def _receiver(self, group: ConsumerGroup, keys: KeyFilter) -> ReferenceReceiver:
        return self.RECEIVER(self, group, keys)

    def reach(self) -> None:
        """Raise if the store is to be unreachable."""
        if not self.reachable:
            raise ConnectionLostError("the reference store cannot be reached")

    async def ping(self, timeout: float = 5.0) -> None:
        """Return if the store can be reached."""
        await super().ping(timeout)
        self.reach()

    async def peek(
        self,
        keys: Sequence[str] | str | None = None,
        *,
        group: ConsumerGroup = None,
        limit: int = 10,
    ) -> list[Message]:
        """Return what ``group`` could take now."""
        self.need("peek", "peek()")
        found = self.store.peek(validate_group(group), KeyFilter(keys), limit)
        return [message_of(stored, attempt) for stored, attempt in found]

    async def stats(self) -> QueueStats:
        """Return exact numbers."""
        self.need("stats", "stats()")
        return self.store.stats()

    async def dead_letters(self, *, group: ConsumerGroup = None, limit: int = 100) -> list[Message]:
        """Return the dead letters of ``group``."""
        self.need("dead_letters", "dead_letters()")
        known = self.store.groups.get(validate_group(group))
        dead = list(known.dead.values())[:limit] if known is not None else []
        return [message_of(stored, attempts, headers) for stored, attempts, headers in dead]

    async def replay(
        self,
        *,
        group: ConsumerGroup = None,
        ids: Iterable[str] | None = None,
        limit: int | None = None,
    ) -> int:
        """Put dead letters back for ``group``."""
        self.need("dead_letters", "replay()")
        chosen = None if ids is None else set(ids)
        return self.store.replay(
            validate_group(group), lambda id_: chosen is None or id_ in chosen, limit
        )

    async def groups(self) -> list[ConsumerGroup]:
        """Return the groups that exist."""
        self.need("admin", "groups()")
        return list(self.store.groups)

    async def delete_group(self, name: ConsumerGroup) -> None:
        """Forget a group."""
        self.need("admin", "delete_group()")
        self.store.delete_group(validate_group(name))

    async def purge(
        self, keys: Sequence[str] | str | None = None, *, group: ConsumerGroup = None
    ) -> int:
        """Drop what waits for ``group``."""
        self.need("admin", "purge()")
        return self.store.purge(validate_group(group), KeyFilter(keys))

    def need(self, capability: str, what: str) -> None:
        """Refuse what is not claimed, and everything once closed."""
        self._check_open()
        if not getattr(self.capabilities, capability):
            raise unsupported(self.name, what, capability)


class ReferenceReceiver:
    """One consumer of a group in a `Store`."""

    def __init__(self, backend: ReferenceBackend, group: ConsumerGroup, keys: KeyFilter) -> None:
        self.backend = backend
        self.store = backend.store
        self.lease = backend.capabilities.lease
        self.name = group
        self.keys = keys
        self.group = Group(group)
        self.news = asyncio.Event()
        self.woken = False
        self.connection = -1

    async def open(self) -> None:
        """Create the group."""
        self.backend.reach()
        self.group = self.store.open_group(self.name, self.keys)
        self.store.listeners.add(self.news)
        self.connection = self.store.connection

    async def receive(self, max_messages: int, timeout: float) -> Sequence[Delivery]:
        """Wait for messages."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while not self.woken and loop.time() < deadline:
            self.check()
            self.news.clear()
            leases = self.store.take(self.group, self.keys, max_messages, self.lease or math.inf)
            if leases:
                return [self.deliver(lease) for lease in leases]
            pause = min(deadline - loop.time(), self.store.next_due(self.group))
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self.news.wait()
        self.woken = False
        return ()

    def deliver(self, lease: Lease) -> Delivery:
        """Make the message."""
        attempt = lease.attempt if self.store.can.attempts != "none" else 1
        begun = len(lease.place.begun)
        return Delivery(message_of(lease.place.stored, attempt), lease, begun=begun)

    async def begin(self, deliveries: Sequence[Delivery]) -> None:
        """Count that handling begins."""
        self.check()
        for delivery in deliveries:
            self.store.begin(delivery.receipt)

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[SettleFailure]:
        """Apply settlements; those of lost deliveries change nothing."""
        self.check()
        return [SettleFailure(s) for s in settlements if not self.store.settle(self.group, s)]

    async def extend(self, deliveries: Sequence[Delivery], seconds: float) -> Sequence[Delivery]:
        """Prolong leases."""
        self.check()
        return [d for d in deliveries if not self.store.extend(self.group, d.receipt, seconds)]

    def wake(self) -> None:
        """End a waiting `receive`."""
        self.woken = True
        self.news.set()

    async def aclose(self) -> None:
        """Stop listening."""
        self.store.listeners.discard(self.news)

    def check(self) -> None:
        """Raise if the connection was cut or the group deleted."""
        if self.group.deleted:
            raise ConfigurationError(f"group {self.name!r} was deleted; open a new stream")
        if self.connection != self.store.connection:
            raise ConnectionLostError("the connection to the reference store was cut")


ReferenceBackend.RECEIVER = ReferenceReceiver


def message_of(stored: Stored, attempt: int, headers: dict[str, str] | None = None) -> Message:
    """Return a stored message as consumers see it."""
    item = stored.item
    own = item.headers if headers is None else headers
    return Message(decode_payload(item.body), stored.id, item.key, stored.time, attempt, own)


class ReferenceHarness(Harness):
    """Every hook, for any variant of the reference backend.

    Args:
        backend: The variant.
        patience: Seconds to wait for what must happen.
    """

    quiet = 0.02
    short_delay = 0.1

    def __init__(
        self, backend: type[ReferenceBackend] = ReferenceBackend, patience: float = 10.0
    ) -> None:
        self.backend = backend
        self.patience = patience
        self._stores: dict[str, Store] = {}

    def store(self, namespace: str) -> Store:
        """Return the store of a namespace."""
        if namespace not in self._stores:
            self._stores[namespace] = self.backend.STORE(self.backend.CAPABILITIES)
        return self._stores[namespace]

    def make(self, namespace: str) -> ReferenceBackend:
        """Return a backend on the store of ``namespace``."""
        return self.backend(self.store(namespace))

    def make_bounded(self, namespace: str, capacity: int) -> ReferenceBackend:
        """Return one that refuses more than ``capacity`` messages."""
        return self.backend(self.store(namespace), maxsize=capacity)

    def make_short_lease(self, namespace: str, seconds: float) -> ReferenceBackend:
        """Return one with another lease."""
        return self.backend(self.store(namespace), lease=seconds)

    def make_unreachable(self, namespace: str) -> ReferenceBackend:
        """Return one that cannot reach its store."""
        return self.backend(self.store(namespace), reachable=False)

    def make_without_groups(self, namespace: str) -> ReferenceBackend:
        """Return one on a store of its own, without any group."""
        store = self.store(f"{namespace}-empty")
        store.groups.clear()
        return self.backend(store)

    def advance_time(self, seconds: float) -> None:
        """Move the clock of every store."""
        for store in self._stores.values():
            store.advance(seconds)

    def cut_connections(self) -> None:
        """Cut them all."""
        for store in self._stores.values():
            store.cut()

    def lose_data(self) -> None:
        """Empty every store."""
        for store in self._stores.values():
            store.lose()

    def restart_broker(self) -> None:
        """Cut them all: what is stored survives a restart."""
        self.cut_connections()

    def kill_consumer(self, namespace: str, group: ConsumerGroup, count: int) -> None:
        """Take messages and never settle them, which is all that others see of a dead process."""
        store = self.store(namespace)
        opened = store.open_group(group, KeyFilter())
        lease = self.backend.CAPABILITIES.lease or math.inf
        taken = store.take(opened, KeyFilter(), count, lease)
        assert len(taken) == count, f"only {len(taken)} of {count} messages could be taken"

    async def kill_publisher(self, namespace: str, key: str) -> int:
        """Publish some and stop."""
        backend = self.make(namespace)
        for n in range(10):
            await backend.publish(key, {"n": n})
        return 10
