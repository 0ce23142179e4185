"""`connect` and `SyncBackend`: any backend, for synchronous code and notebooks."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Self, TypeVar

from abe._redact import Variables
from abe.backends.message_queue.base import (
    BaseBackend,
    Capabilities,
    Keys,
    Message,
    Outgoing,
    SyncMessage,
)
from abe.backends.message_queue.base.closing import ExitGuard
from abe.backends.message_queue.base.operations import Items, documented
from abe.backends.message_queue.base.outgoing import Label, item_label
from abe.backends.message_queue.base.process import Unshareable
from abe.backends.message_queue.client import AsyncBackend, aconnect
from abe.backends.message_queue.consumer import AsyncLoopConsumer, RetryPolicy
from abe.display.results import Backlog, DeadLetters, Messages
from abe.display.text import group_name
from abe.errors import ConfigurationError
from abe.sync.aio import BridgedBackend
from abe.sync.bulk import send_in_chunks
from abe.sync.pool import Loan, SubscriptionPool
from abe.sync.portal import get_portal
from abe.sync.stream import SyncBatch, SyncStream
from abe.sync.worker import Worker
from abe.types import (
    ConsumerGroup,
    EventHandlerFunc,
    MessageQueueBackendProtocol,
    MessageQueueKey,
    MessageQueuePayload,
)

__all__ = ["SyncBackend", "connect"]

T = TypeVar("T")


def connect(
    name_or_backend: str | MessageQueueBackendProtocol | None = None,
    *,
    env: Mapping[str, str] | None = None,
) -> SyncBackend:
    """Open a backend for synchronous code: scripts, threads and notebook cells.

    It connects when first used. Close it with ``with`` or `SyncBackend.close`; one that is
    forgotten is closed quietly when it is collected, or when the interpreter exits.

    Args:
        name_or_backend: An installed backend's name, a backend object, or ``None`` to choose as
            `abe.load_backend` does.
        env: Environment variables that overlay the process's while the backend is created.

    Raises:
        UnknownBackendError: If no backend of that name is installed.
        BackendLoadError: If the provider is broken.
        ConfigurationError: If a variable is missing or malformed, or ``env`` is given with an
            object.
        LoopError: If the object is in use on another event loop, or if called on abe's own.
        TypeError: If it is not a backend.
    """
    __tracebackhide__ = True
    if isinstance(name_or_backend, SyncBackend):
        raise TypeError("this is a SyncBackend already; use it as it is")
    made_by_caller = not (name_or_backend is None or isinstance(name_or_backend, str))
    portal = get_portal()
    env = None if env is None else Variables(env)  # no frame of a traceback shows its secrets
    backend = aconnect(name_or_backend, env=env)
    if made_by_caller and portal.threaded and isinstance(backend.backend, BaseBackend):
        portal.call(backend.backend.__aenter__())  # binds it to the portal's loop, or refuses
    return SyncBackend(SubscriptionPool(portal, backend))


@documented
class SyncBackend(Unshareable):
    """A backend whose methods block; made by `connect`.

    Safe to use from several threads, also inside a running event loop. Ctrl-C ends a waiting call
    and loses no message that had arrived; a second Ctrl-C does so at once. After ``os.fork`` the
    child calls `connect` again; what the parent opened raises `LoopError` there. Every method
    raises `BackendClosedError` after `close`, and `UnsupportedError` if the backend cannot do
    what is asked for.
    """

    def __init__(self, pool: SubscriptionPool) -> None:
        self._pool = pool

    def __repr__(self) -> str:
        return f"<SyncBackend {self.name}{' closed' if self._pool.closed else ''}>"

    @property
    def name(self) -> str:
        """What errors and the log call the backend."""
        return self._pool.backend.name

    @property
    def capabilities(self) -> Capabilities:
        """What the backend declares; a plain backend declares nothing."""
        return self._pool.backend.capabilities

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._pool.closed

    @property
    def aio(self) -> AsyncBackend:
        """The async client of the same connection, for any event loop: async cells, handlers."""
        return BridgedBackend(self._pool, self)

    # -- publishing ------------------------------------------------------------------------

    def publish(
        self,
        key: MessageQueueKey,
        payload: MessageQueuePayload,
        *,
        headers: Mapping[str, str] | None = None,
        delay: float = 0.0,
    ) -> None:
        __tracebackhide__ = True
        pool = self._pool
        if pool.closed:
            pool.check_open()
        pool.portal.call(pool.backend.publish(key, payload, headers=headers, delay=delay))

    def publish_many(
        self,
        items: Items,
        *,
        key: MessageQueueKey | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> int:
        """Publish many messages in order; everything is checked before anything is sent.

        Args:
            items: ``(key, payload)`` pairs, or payloads if ``key`` is given.
            key: Routing key of all of them.
            progress: Called in this thread with the number published so far, now and then. After
                an interrupt it is told the exact number, before that is raised.

        Returns:
            How many were published.

        Raises:
            InvalidKeyError: If a key is malformed.
            PayloadError: If a payload is not JSON.
            PublishError: If not all were accepted; ``published`` and ``failed`` say which.
        """
        __tracebackhide__ = True
        prepared = self.prepare(items, key=key)
        self.send(prepared, progress=progress)
        return len(prepared)

    def prepare(
        self,
        items: Items,
        *,
        key: MessageQueueKey | None = None,
        headers: Mapping[str, str] | None = None,
        delay: float = 0.0,
        label: Label = item_label,
    ) -> list[Outgoing]:
        __tracebackhide__ = True
        if self._pool.closed:
            self._pool.check_open()
        return self._pool.backend.prepare(items, key=key, headers=headers, delay=delay, label=label)

    def send(
        self, prepared: Sequence[Outgoing], *, progress: Callable[[int], object] | None = None
    ) -> None:
        """Publish what `prepare` has returned, in order.

        Args:
            prepared: All of it, or a part.
            progress: As for `publish_many`.

        Raises:
            PublishError: If not all were accepted; ``published`` and ``failed`` say which.
        """
        __tracebackhide__ = True
        pool = self._pool
        if pool.closed:
            pool.check_open()
        if progress is None:
            pool.portal.call(pool.backend.send(prepared))
        else:
            first = 100 if len(prepared) > 1 and self.capabilities.publish_many else 1
            send_in_chunks(pool.portal.call, pool.backend.send, prepared, progress, first=first)

    # -- consuming -------------------------------------------------------------------------

    def consume(
        self,
        keys: Keys = None,
        *,
        group: ConsumerGroup = None,
        limit: int | None = None,
        timeout: float | None = None,
    ) -> SyncStream:
        """Iterate over the messages of ``group``, settling on resume.

        Asking for the next message acks the previous one. ``break`` or an exception releases the
        message in hand; to keep it use ``limit``, `batch`, or ``message.ack()`` before ``break``.

        Args:
            keys: Only keys that match one of these: ``*`` is one segment, a final ``**`` one or
                more.
            group: The consumer group.
            limit: Messages after which the loop ends, the last one acked.
            timeout: Longest wait for the next message, in seconds; then the loop ends. 0 takes
                what is there (and waits 0.1 s to see it). ``None`` waits for ever.

        Raises:
            InvalidKeyError: If ``group`` or a filter is malformed.
            ConfigurationError: If ``limit`` or ``timeout`` is negative.
        """
        __tracebackhide__ = True
        selector = self._pool.select(keys, group)
        _check_count("limit", limit, at_least=0)
        _check_timeout(timeout)
        prefetch = None
        if limit:
            prefetch = min(limit, 512)  # what a short loop does not need stays with the others
        return SyncStream(
            self._pool.portal, Loan(self._pool, selector, prefetch, self), limit, timeout
        )

    def take(
        self,
        n: int = 1,
        *,
        timeout: float | None = 5.0,
        quiet: float | None = None,
        keys: Keys = None,
        group: ConsumerGroup = None,
    ) -> Messages[SyncMessage]:
        """Return up to ``n`` messages, acked: the broker knows when it returns.

        Args:
            n: How many to wait for.
            timeout: Seconds to wait in total (at least 0.1); then it returns what has come.
                ``None`` waits until there are ``n``.
            quiet: Seconds without a further message after which it returns what has come, if
                anything has; ``None`` waits on.
            keys: Only keys that match one of these.
            group: The consumer group.

        Raises:
            InvalidKeyError: If ``group`` or a filter is malformed.
            ConfigurationError: If ``n``, ``timeout`` or ``quiet`` is out of range.
        """
        __tracebackhide__ = True
        selector = self._pool.select(keys, group)
        _check_count("n", n, at_least=1)
        _check_timeout(timeout)
        _check_timeout(quiet, "quiet")
        keep = partial(self._pool.keep, selector)
        taken: list[Message] = []
        try:
            taken = self._pool.portal.call(self._pool.take(selector, n, timeout, quiet), keep=keep)
            return Messages(
                (SyncMessage(message) for message in taken),
                f"from {self.name}, {group_name(group)}",
            )
        except BaseException:  # an interrupt between these two lines
            if taken:
                self._pool.portal.post(keep, taken)
            raise

    def batch(
        self,
        n: int,
        *,
        timeout: float | None = 5.0,
        keys: Keys = None,
        group: ConsumerGroup = None,
    ) -> SyncBatch:
        """Take messages for a ``with`` block: acked on a clean exit, released on an exception.

        Args:
            n: How many to wait for.
            timeout: Seconds to wait in total (at least 0.1); then the block gets what has come,
                which may be nothing. ``None`` waits until there are ``n``.
            keys: Only keys that match one of these.
            group: The consumer group.

        Raises:
            InvalidKeyError: If ``group`` or a filter is malformed.
            ConfigurationError: If ``n`` or ``timeout`` is out of range.
        """
        __tracebackhide__ = True
        selector = self._pool.select(keys, group)
        _check_count("n", n, at_least=1)
        _check_timeout(timeout)
        return SyncBatch(self, self._pool, selector, n, timeout)

    def worker(
        self,
        handler: EventHandlerFunc,
        *,
        keys: Keys = None,
        group: ConsumerGroup = None,
        concurrency: int = 1,
        retry: RetryPolicy | None = None,
        dead_letter_key: str | None = None,
        drain_timeout: float = 30.0,
    ) -> Worker:
        """Handle messages in the background, as `abe.AsyncLoopConsumer` does.

        Args:
            handler: A sync function (runs in a thread, its messages block on settling), an async
                function, or an object with ``handle_event``.
            keys: Only keys that match one of these.
            group: The consumer group.
            concurrency: Most handlers at a time.
            retry: What to do after a failure.
            dead_letter_key: Where exhausted messages are published if the backend has no dead
                letters.
            drain_timeout: Seconds that `Worker.stop` waits for handlers in flight.

        Returns:
            A handle with counters and ``stop()``; the worker runs on if it is dropped.
        """
        __tracebackhide__ = True
        self._pool.select(keys, group)
        consumer = AsyncLoopConsumer(
            self._pool.backend.backend,
            group,
            keys=keys,
            concurrency=concurrency,
            retry=retry,
            dead_letter_key=dead_letter_key,
            drain_timeout=drain_timeout,
        )
        worker = Worker(self, self._pool, consumer, handler)
        return self._pool.portal.call(worker.start(), keep=Worker.request_stop)

    # -- looking and cleaning up -----------------------------------------------------------

    def peek(
        self, keys: Keys = None, *, group: ConsumerGroup = None, limit: int = 10
    ) -> Messages[SyncMessage]:
        __tracebackhide__ = True
        found = self._look(self._pool.backend.peek, keys, group=group, limit=limit)
        where = f"waiting on {self.name} for {group_name(group)}, not taken"
        return Messages((SyncMessage(message) for message in found), where)

    def stats(self) -> Backlog:
        __tracebackhide__ = True
        found = self._look(self._pool.backend.stats)
        return Backlog(found.entries, found.approximate, f"of {self.name}")

    def dead_letters(
        self, *, group: ConsumerGroup = None, limit: int = 100
    ) -> DeadLetters[SyncMessage]:
        __tracebackhide__ = True
        found = self._look(self._pool.backend.dead_letters, group=group, limit=limit)
        where = f"of {group_name(group)} on {self.name}"
        return DeadLetters((SyncMessage(message) for message in found), where)

    def replay(
        self,
        *,
        group: ConsumerGroup = None,
        ids: Iterable[str] | None = None,
        limit: int | None = None,
    ) -> int:
        __tracebackhide__ = True
        return self._look(self._pool.backend.replay, group=group, ids=ids, limit=limit)

    def groups(self) -> list[ConsumerGroup]:
        __tracebackhide__ = True
        return self._look(self._pool.backend.groups)

    def delete_group(self, name: ConsumerGroup) -> None:
        __tracebackhide__ = True
        self._look(self._pool.backend.delete_group, name)

    def purge(self, keys: Keys = None, *, group: ConsumerGroup = None) -> int:
        __tracebackhide__ = True
        return self._look(self._pool.backend.purge, keys, group=group)

    def ping(self, timeout: float = 5.0) -> None:
        __tracebackhide__ = True
        self._look(self._pool.backend.ping, timeout)

    # -- life ------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop its workers, give back what is not settled, disconnect; closing twice is fine.

        Blocks until that is done. Called from the handler of one of its workers, it returns at once
        and the connection closes once that handler has returned.

        Raises:
            AbeError: If a settlement failed for good and no call has raised that yet.
        """
        __tracebackhide__ = True
        if not self._pool.closed and not self._pool.portal.forked:
            self._pool.portal.call(self._pool.aclose())

    def __enter__(self) -> Self:
        self._pool.check_open()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        __tracebackhide__ = True
        with ExitGuard(kind, "backend", self.name):
            self.close()

    def __del__(self) -> None:
        if not self._pool.closed:
            self._pool.portal.post_from_finalizer(self._pool.begin_close)

    def _look(self, method: Callable[..., Coroutine[Any, Any, T]], *args: Any, **options: Any) -> T:
        __tracebackhide__ = True
        self._pool.check_open()
        return self._pool.portal.call(self._pool.look(partial(method, *args, **options)))


def _check_count(name: str, value: object, *, at_least: int) -> None:
    if value is not None and (not isinstance(value, int) or value < at_least):
        raise ConfigurationError(f"{name} is {value!r}; it must be a whole number >= {at_least}")


def _check_timeout(timeout: float | None, name: str = "timeout") -> None:
    if timeout is not None and not timeout >= 0:
        raise ConfigurationError(f"{name} is {timeout!r}; it must be 0 or more seconds, or None")
