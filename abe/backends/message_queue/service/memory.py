"""The in-process backend: every semantic of the contract, nothing durable."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import threading
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from functools import partial
from typing import ClassVar, Self

from abe.backends.message_queue.base import (
    COMPLETE,
    BaseBackend,
    Delivery,
    KeyFilter,
    Message,
    Outgoing,
    Setting,
    SettleFailure,
    Settlement,
    check_settings,
    validate_key,
)
from abe.backends.message_queue.base.log_records import log
from abe.backends.message_queue.base.payload import freeze_payload, thaw_payload
from abe.backends.message_queue.base.process import PerProcess
from abe.backends.message_queue.service.memory_store.group import Group, Lease, Record, View
from abe.backends.message_queue.service.memory_store.store import Store
from abe.errors import ConfigurationError, InvalidKeyError, PublishError
from abe.types import ConsumerGroup, KeyStats, QueueStats

__all__ = ["MemoryBackend"]

logger = logging.getLogger(__name__)


class _Stores:
    """The stores of a process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.by_name: dict[str, Store] = {}


_stores = PerProcess(_Stores)


def _store_name(text: str) -> str:
    try:
        return validate_key(text)
    except InvalidKeyError as error:
        raise ValueError(f"a key: {error}") from None


class MemoryBackend(BaseBackend):
    """Messages in this process's memory, for development, tests and notebooks.

    Backends of one ``name`` share one store for the life of the process, closed or not.
    Thread-safe and loop-agnostic: publish from any thread or event loop, consume on another.

    Args:
        name: Name of the store.
        maxsize: Most messages retained; at the bound, ``publish`` waits. ``None`` = unbounded.
        publish_timeout: Seconds that ``publish`` waits for room.
        lease: Seconds after which a message that is neither settled nor extended comes back.

    Raises:
        InvalidKeyError: If ``name`` breaks the rules of keys.
        ConfigurationError: If a number is out of range.
    """

    name: ClassVar[str] = "memory"
    loop_bound: ClassVar[bool] = False
    max_prefetch: ClassVar[int] = 64  # asking costs next to nothing; more would leave the cache
    settings = (
        Setting(
            "ABE_MEMORY_NAME",
            _store_name,
            "default",
            help="which store: backends of one name share its messages; it follows the rules of"
            " keys",
            sample="shop",
        ),
        Setting(
            "ABE_MEMORY_MAXSIZE",
            int,
            minimum=1,
            unit="messages",
            help="messages that the store holds; at the limit `publish` waits",
            default_text="no limit",
            sample="10000",
        ),
        Setting(
            "ABE_MEMORY_PUBLISH_TIMEOUT",
            float,
            30.0,
            "s",
            "how long `publish` waits for room before it raises",
            sample="2.5",
        ),
        Setting(
            "ABE_MEMORY_LEASE",
            float,
            30.0,
            "s",
            "how long a message may be neither settled nor extended, else it is redelivered",
            minimum=0.001,
            sample="120",
        ),
    )
    _encode = staticmethod(freeze_payload)

    def __init__(
        self,
        name: str = "default",
        *,
        maxsize: int | None = None,
        publish_timeout: float = 30.0,
        lease: float = 30.0,
    ) -> None:
        super().__init__()
        given = {"maxsize": maxsize, "publish_timeout": publish_timeout, "lease": lease}
        check_settings(self.settings, **given)
        self.store_name = name = validate_key(name)
        self.capabilities = replace(COMPLETE, lease=lease)
        self._maxsize = math.inf if maxsize is None else maxsize
        self._publish_timeout = publish_timeout
        self._lease = lease
        stores = _stores.get()
        with stores.lock:
            self._store = stores.by_name.setdefault(name, Store())

    @classmethod
    def from_env(cls) -> Self:
        """Create a backend from the environment; a new store logs that it is for development.

        Raises:
            ConfigurationError: If a variable is malformed.
        """
        stores = _stores.get()
        known = len(stores.by_name)
        backend = super().from_env()
        if len(stores.by_name) > known:
            text = "backend memory keeps messages in this process only: for development"
            log(logger, logging.WARNING, text)
        return backend

    def __repr__(self) -> str:
        return f"MemoryBackend({self.store_name!r})"

    async def _send(self, items: Sequence[Outgoing]) -> None:
        sent = self._store.publish(items, self._maxsize)
        if sent == len(items):
            return
        deadline = asyncio.get_running_loop().time() + self._publish_timeout
        while sent < len(items):
            if not await self._room(deadline):
                raise self._refusal(sent, len(items))
            sent += self._store.publish(items[sent:], self._maxsize)

    async def _room(self, deadline: float) -> bool:
        """Wait until a message may have gone; False if in vain, or the backend is closed."""
        room = self._store.wait_for_room(self._maxsize)
        try:
            if not self._closed:
                async with asyncio.timeout_at(deadline):
                    await room
        except TimeoutError:
            return False
        finally:
            self._store.forget_wait(room)
        return not self._closed

    def _refusal(self, sent: int, total: int) -> PublishError:
        if self._closed:
            reason = "the backend was closed"
            text = f"{reason} while it waited for room in memory store {self.store_name!r}"
        else:
            reason = "the store is full"
            text = (
                f"memory store {self.store_name!r} is full ({self._maxsize} messages) and had no "
                f"room for {self._publish_timeout:g} s; {self._store.slowest()}"
            )
        return PublishError(
            text,
            retryable=not self._closed,
            published=range(sent),
            failed=dict.fromkeys(range(sent, total), reason),
        )

    def _survives_fork(self) -> bool:
        return self._store is _stores.get().by_name.get(self.store_name)

    async def _disconnect(self) -> None:
        self._store.wake_publishers()

    def _receiver(self, group: ConsumerGroup, keys: KeyFilter) -> MemoryReceiver:
        return MemoryReceiver(self._store, group, keys, self._lease)

    async def _peek(self, keys: KeyFilter, group: ConsumerGroup, limit: int) -> list[Message]:
        found = self._store.peek(keys, group, limit)
        return [_shown(record, attempt, record.headers) for record, attempt in found]

    async def _stats(self) -> QueueStats:
        entries: list[KeyStats] = []
        for census in self._store.census():
            while census.step():  # noqa: ASYNC110 - others take, settle and extend meanwhile
                await asyncio.sleep(0)
            entries += census.entries()
        return QueueStats(tuple(entries))

    async def _dead_letters(self, group: ConsumerGroup, limit: int) -> list[Message]:
        return [_shown(*letter) for letter in self._store.dead_letters(group, limit)]

    async def _replay(self, group: ConsumerGroup, ids: Set[str] | None, limit: int) -> int:
        return self._store.replay(group, ids, limit)

    async def _groups(self) -> list[ConsumerGroup]:
        return self._store.group_names()

    async def _delete_group(self, name: ConsumerGroup) -> None:
        self._store.delete_group(name)

    async def _purge(self, keys: KeyFilter, group: ConsumerGroup) -> int:
        total = 0
        for dropped in self._store.purge(keys, group):
            total += dropped
            await asyncio.sleep(0)  # others take, settle and extend meanwhile
        return total


class MemoryReceiver:
    """One consumer of a group in a `Store`."""

    def __init__(self, store: Store, group: ConsumerGroup, keys: KeyFilter, lease: float) -> None:
        self.lease: float | None = lease
        self._seconds = lease
        self._store = store
        self._name = group
        self._keys = keys
        self._group: Group | None = None
        self._view: View | None = None
        self._woken = False
        self._waiting: asyncio.Future[None] | None = None

    async def open(self) -> None:
        self._group, self._view = self._store.open_group(self._name, self._keys)

    async def receive(self, max_messages: int, timeout: float) -> Sequence[Delivery]:
        assert self._group is not None
        assert self._view is not None
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while not self._woken:
            leases, waiting, pause = self._store.take(
                self._group, self._view, max_messages, self._seconds
            )
            if leases:
                return [_deliver(lease, self._group) for lease in leases]
            if waiting is None:
                break
            self._waiting = waiting
            timer = loop.call_later(min(pause, deadline - loop.time()), _resolve, waiting)
            try:
                await waiting
            finally:
                timer.cancel()
                self._store.forget_wait(waiting)
            if loop.time() >= deadline:
                break
        self._woken = False
        if self._group.deleted:
            raise ConfigurationError(
                f"group {self._name!r} was deleted while this stream was open; open a new stream"
            )
        return ()

    async def settle(self, settlements: Sequence[Settlement]) -> Sequence[SettleFailure]:
        assert self._group is not None
        lost = self._store.settle(self._group, settlements)
        return [SettleFailure(settlements[n]) for n in lost]

    async def extend(self, deliveries: Sequence[Delivery], seconds: float) -> Sequence[Delivery]:
        assert self._group is not None
        lost = self._store.extend(self._group, [d.receipt for d in deliveries], seconds)
        return [deliveries[n] for n in lost]

    async def begin(self, deliveries: Sequence[Delivery]) -> None:
        assert self._group is not None
        self._store.begin(self._group, [d.receipt for d in deliveries])

    def wake(self) -> None:
        self._woken = True
        if self._waiting is not None:
            _resolve(self._waiting)

    async def aclose(self) -> None:
        if self._group is not None and self._view is not None:
            self._store.close_view(self._group, self._view)
            self._view = None


def _deliver(lease: Lease, group: Group) -> Delivery:
    record = lease.record
    message = Message(
        thaw_payload(record.body),
        record.id,
        record.key,
        record.time,
        lease.attempt,
        {**record.headers} if record.headers else {},
    )
    begun = group.begun
    return Delivery(message, lease, begun.get(record.seq, 0) if begun else 0)


def _shown(record: Record, attempt: int, headers: Mapping[str, str]) -> Message:
    payload = thaw_payload(record.body)
    return Message(payload, record.id, record.key, record.time, attempt, {**headers})


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


_forking: list[_Stores] = []


def _before_fork() -> None:
    stores = _stores.get()
    stores.lock.acquire()
    for store in stores.by_name.values():
        store.before_fork()
    _forking.append(stores)


def _after_fork(*, child: bool) -> None:
    stores = _forking.pop()
    for store in stores.by_name.values():
        store.after_fork(child=child)
    if child:
        _stores.adopt(stores)
    stores.lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=partial(_after_fork, child=False),
        after_in_child=partial(_after_fork, child=True),
    )
