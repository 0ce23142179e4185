"""The awaitable view of a backend that lives on the portal, for any event loop."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from abe.backends.message_queue.base import Capabilities, Message, Outgoing
from abe.backends.message_queue.base.outgoing import Label, item_label
from abe.sync.feed import BATCH, Feed
from abe.sync.home import place_of
from abe.types import ConsumerGroup, MessageQueueKey, MessageQueuePayload, QueueStats

if TYPE_CHECKING:
    from abe.sync.backend import SyncBackend

__all__ = ["AsyncStream", "AsyncView"]

T = TypeVar("T")


class AsyncView:
    """`SyncBackend.aio`: the methods of `abe.aconnect`, awaitable from any event loop.

    Each call runs on the portal's loop, where the backend lives. Cancelling the await cancels
    the call there and waits for its outcome.
    """

    def __init__(self, owner: SyncBackend) -> None:
        self._owner = owner
        self._home = owner._home

    @property
    def name(self) -> str:
        """What errors and the log call the backend."""
        return self._home.backend.name

    @property
    def capabilities(self) -> Capabilities:
        """What the backend declares."""
        return self._home.backend.capabilities

    def __repr__(self) -> str:
        return f"<AsyncView of {self._owner!r}>"

    async def publish(
        self,
        key: MessageQueueKey,
        payload: MessageQueuePayload,
        *,
        headers: Mapping[str, str] | None = None,
        delay: float = 0.0,
    ) -> None:
        """Publish one message; see `SyncBackend.publish`."""
        __tracebackhide__ = True
        self._home.check_open()
        await self._run(self._home.backend.publish(key, payload, headers=headers, delay=delay))

    async def publish_many(
        self,
        items: Iterable[tuple[MessageQueueKey, MessageQueuePayload]] | Iterable[Any],
        *,
        key: MessageQueueKey | None = None,
    ) -> int:
        """Publish many messages in order; see `SyncBackend.publish_many`."""
        __tracebackhide__ = True
        self._home.check_open()
        prepared = self.prepare(items, key=key)
        await self.send(prepared)
        return len(prepared)

    def prepare(
        self,
        items: Iterable[tuple[MessageQueueKey, MessageQueuePayload]] | Iterable[Any],
        *,
        key: MessageQueueKey | None = None,
        headers: Mapping[str, str] | None = None,
        delay: float = 0.0,
        label: Label = item_label,
    ) -> list[Outgoing]:
        """Check and encode messages once; see `SyncBackend.prepare`."""
        self._home.check_open()
        return self._home.backend.prepare(items, key=key, headers=headers, delay=delay, label=label)

    async def send(self, prepared: Sequence[Outgoing]) -> None:
        """Publish what `prepare` has returned, in order; see `SyncBackend.send`."""
        __tracebackhide__ = True
        self._home.check_open()
        await self._run(self._home.backend.send(prepared))

    def consume(
        self,
        keys: Sequence[str] | str | None = None,
        *,
        group: ConsumerGroup = None,
        prefetch: int | None = None,
    ) -> AsyncStream:
        """Return a stream over the messages of ``group``, settling on resume.

        Args:
            keys: Only keys that match one of these: ``*`` is one segment, a final ``**`` one or
                more.
            group: The consumer group.
            prefetch: Most messages to receive ahead of the caller; ``None`` adapts to its speed.

        Raises:
            InvalidKeyError: If ``group`` or a filter is malformed.
            UnsupportedError: If ``keys`` is given and the backend cannot filter.
            BackendClosedError: If the backend is closed.
        """
        self._home.check_open()
        place = place_of(self._home.backend, keys, group)
        return AsyncStream(self._owner, Feed(self._home, place, prefetch), prefetch)

    async def peek(
        self,
        keys: Sequence[str] | str | None = None,
        *,
        group: ConsumerGroup = None,
        limit: int = 10,
    ) -> list[Message]:
        """Look at messages without taking them; see `SyncBackend.peek`."""
        __tracebackhide__ = True
        return await self._look(self._home.backend.peek, keys, group=group, limit=limit)

    async def stats(self) -> QueueStats:
        """Return the backlog; see `SyncBackend.stats`."""
        __tracebackhide__ = True
        return await self._look(self._home.backend.stats)

    async def dead_letters(self, *, group: ConsumerGroup = None, limit: int = 100) -> list[Message]:
        """Look at dead letters; see `SyncBackend.dead_letters`."""
        __tracebackhide__ = True
        return await self._look(self._home.backend.dead_letters, group=group, limit=limit)

    async def replay(
        self,
        *,
        group: ConsumerGroup = None,
        ids: Iterable[str] | None = None,
        limit: int | None = None,
    ) -> int:
        """Put dead letters back; see `SyncBackend.replay`."""
        __tracebackhide__ = True
        return await self._look(self._home.backend.replay, group=group, ids=ids, limit=limit)

    async def groups(self) -> list[ConsumerGroup]:
        """List the groups; see `SyncBackend.groups`."""
        __tracebackhide__ = True
        return await self._look(self._home.backend.groups)

    async def delete_group(self, name: ConsumerGroup) -> None:
        """Forget a group; see `SyncBackend.delete_group`."""
        __tracebackhide__ = True
        await self._look(self._home.backend.delete_group, name)

    async def purge(
        self, keys: Sequence[str] | str | None = None, *, group: ConsumerGroup = None
    ) -> int:
        """Drop what waits; see `SyncBackend.purge`."""
        __tracebackhide__ = True
        return await self._look(self._home.backend.purge, keys, group=group)

    async def ping(self, timeout: float = 5.0) -> None:
        """Return once the broker has answered; see `SyncBackend.ping`."""
        __tracebackhide__ = True
        await self._look(self._home.backend.ping, timeout)

    async def aclose(self) -> None:
        """Close the backend, for the synchronous side too; closing twice is fine."""
        __tracebackhide__ = True
        if not self._home.closed:
            await self._run(self._home.aclose())

    async def __aenter__(self) -> Self:
        self._home.check_open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        __tracebackhide__ = True
        return await self._home.portal.bridge(coroutine)

    async def _look(
        self, method: Callable[..., Coroutine[Any, Any, T]], *args: Any, **options: Any
    ) -> T:
        __tracebackhide__ = True
        return await self._run(self._home.look(partial(method, *args, **options)))


class AsyncStream:
    """`AsyncView.consume`: an async iterator for any event loop, settling on resume.

    Behaves as `abe.backends.message_queue.base.MessageStream`: asking for more acks what was
    handed over before; a timeout or cancellation around ``__anext__`` or `take` loses nothing.
    For one task at a time.
    """

    def __init__(self, owner: SyncBackend, feed: Feed, prefetch: int | None) -> None:
        self._owner = owner  # keeps the connection open
        self._feed = feed
        self._most = BATCH if prefetch is None else prefetch
        self._took = False
        self._closed = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        """Ack the message in hand and return the next one, waiting until there is one.

        Raises:
            StopAsyncIteration: Once the stream is closed.
            AbeError: What ended the stream, if the broker refused it for good.
        """
        __tracebackhide__ = True
        feed = self._feed
        feed.resume()
        self._took = False
        if self._closed:
            raise StopAsyncIteration
        message = feed.hand_over()
        while message is None:
            if not await self._wait(feed.refill(self._most, None)):
                raise StopAsyncIteration
            message = feed.hand_over()
        return _Bridged(message, feed)

    async def take(
        self, n: int = 1, timeout: float | None = None, *, quiet: float | None = None
    ) -> list[Message]:
        """Return up to ``n`` messages, in order; acks what was handed over before.

        What it returns is acked by the next call, or by leaving ``async with`` without an
        exception. A cancelled call puts everything back.

        Args:
            n: How many to wait for.
            timeout: Seconds to wait in total; ``None`` waits until there are ``n``.
            quiet: Seconds without a further message after which it returns what has come, if
                anything has; ``None`` waits on.
        """
        __tracebackhide__ = True
        feed = self._feed
        feed.resume()
        if self._closed:
            return []
        taken = await self._wait(feed.take(n, timeout, quiet), feed.untake)
        self._took = True
        return [_Bridged(message, feed) for message in taken]

    async def _wait(
        self, coroutine: Coroutine[Any, Any, T], keep: Callable[[T], object] | None = None
    ) -> T:
        __tracebackhide__ = True
        try:
            return await self._feed.home.portal.bridge(coroutine, keep=keep)
        except BaseException:
            self._feed.pause()
            raise

    def unread(self, message: Message) -> bool:
        """Put a message in hand back at the front, as if it had not been handed over.

        Returns:
            False if the message is settled or not in hand.
        """
        return isinstance(message, _Bridged) and self._feed.unread(message._inner)

    async def flush(self) -> None:
        """Return once the broker has accepted every settlement recorded so far.

        Raises:
            AbeError: If it refused one for good.
        """
        __tracebackhide__ = True
        await self._feed.home.portal.bridge(self._feed.flush())

    async def aclose(self) -> None:
        """Give back messages in hand and buffered ones; closing twice is fine.

        Raises:
            AbeError: If a settlement failed for good and no call has raised that yet.
        """
        __tracebackhide__ = True
        if not self._closed:
            self._closed = True
            await self._feed.home.portal.bridge(self._feed.close())

    @property
    def closed(self) -> bool:
        """Whether no more messages will come."""
        return self._closed or (self._feed.ended and not self._feed.buffer)

    async def __aenter__(self) -> Self:
        """Connect; when it returns, the group exists."""
        await self._feed.home.portal.bridge(self._feed.open())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None and self._took:
            self._feed.resume()
        await self.aclose()

    def __del__(self) -> None:
        if not self._closed:
            self._feed.home.portal.post_from_finalizer(self._feed.begin_close)


class _Bridged(Message):
    """A message whose stream runs on another event loop: settling goes there."""

    __slots__ = ("_feed", "_inner")

    def __init__(self, message: Message, feed: Feed) -> None:
        super().__init__(
            message, message.id, message.key, message.timestamp, message.attempt, message.headers
        )
        self._inner = message
        self._feed = feed

    def __reduce__(self) -> tuple[Any, ...]:
        return Message, super().__reduce__()[1]

    def __repr__(self) -> str:
        return super().__repr__().replace(type(self).__name__, Message.__name__, 1)

    @property
    def outcome(self) -> Any:
        return self._inner.outcome

    async def ack(self) -> bool:
        return await self._settle(self._inner.ack())

    async def nack(self, delay: float = 0.0) -> bool:
        return await self._settle(self._inner.nack(delay))

    async def release(self) -> bool:
        return await self._settle(self._inner.release())

    async def reject(self, reason: object = "") -> bool:
        return await self._settle(self._inner.reject(reason))

    def detach(self) -> None:
        self._inner.detach()
        self._feed.detached.add(id(self._inner))

    async def _settle(self, settling: Coroutine[Any, Any, bool]) -> bool:
        __tracebackhide__ = True
        try:
            return await self._feed.home.portal.bridge(self._feed.settle(settling))
        except RuntimeError:
            settling.close()
            raise
