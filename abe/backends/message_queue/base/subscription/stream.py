"""`MessageStream`: what ``consume()`` of every first-party backend returns."""

from __future__ import annotations

import asyncio
import sys
from asyncio import get_running_loop
from collections.abc import Callable
from typing import Any, Self, TypeVar

from abe.backends.message_queue.base.capabilities import Capabilities
from abe.backends.message_queue.base.closing import ExitGuard
from abe.backends.message_queue.base.message import Message
from abe.backends.message_queue.base.process import Unshareable
from abe.backends.message_queue.base.receiver import Delivery
from abe.backends.message_queue.base.subscription.host import LocalHost, StreamHost
from abe.backends.message_queue.base.subscription.subscription import Subscription
from abe.errors import ConfigurationError

__all__ = ["MessageStream"]

T = TypeVar("T")


class MessageStream(Unshareable):
    """An async iterator over the messages of a group, settling on resume.

    Asking for the next message acks the previous one, if it was neither settled nor detached. A
    crash, a cancellation, a ``break`` or an exception in the loop body never acks it: the message
    is redelivered. (Kafka's auto-commit is the precedent: ``poll()`` commits the messages of the
    previous poll.) To keep the last message of a loop, ``await message.ack()`` before ``break``,
    or use `take`.

    A timeout or cancellation around ``__anext__`` leaves the stream usable and loses nothing.
    Bound to the event loop that first uses it; one task at a time may iterate, but `receive` may
    be called by many. Close it with ``async with`` or `aclose`: messages in hand and buffered ones
    are then released. A stream dropped with a message in hand warns (`ResourceWarning`) and
    releases it if it can.
    """

    __slots__ = ("__weakref__", "_can", "_ended", "_hand", "_host", "_iterating", "_local", "_took")

    def __init__(self, subscription: Subscription) -> None:
        self._set_up(LocalHost(subscription), subscription.capabilities)

    @classmethod
    def hosted(cls, host: StreamHost, capabilities: Capabilities) -> Self:
        """Return a stream whose subscription runs on the loop of ``host``."""
        self = cls.__new__(cls)
        self._set_up(host, capabilities)
        return self

    def _set_up(self, host: StreamHost, capabilities: Capabilities) -> None:
        self._host = host
        self._local = isinstance(host, LocalHost)
        self._can = capabilities
        self._hand: list[Delivery] = []
        self._took = False
        self._iterating = False
        self._ended = False

    @property
    def subscription(self) -> Subscription:
        """The subscription that it reads; a stream hosted elsewhere has one once it is open."""
        assert self._host.subscription is not None
        return self._host.subscription

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        """Ack the message in hand and return the next one, waiting until there is one.

        Raises:
            StopAsyncIteration: Once the stream is closed.
            RuntimeError: If another task is waiting in it.
            AbeError: What ended the stream, if the broker refused it permanently.
        """
        subscription, hand = self._host.subscription, self._hand
        here = subscription is not None and subscription.loop is get_running_loop()
        if not here and self._local:
            self._host.enter()
        if hand:
            if subscription is not None:
                subscription.finish(hand)
            else:  # the stream was closed
                hand.clear()
        self._took = False
        if here:
            assert subscription is not None
            prefetch, buffer = subscription.prefetch, subscription.buffer
            if len(buffer) > prefetch.easy:  # nearly always, while messages come fast
                delivery = buffer[0]
                if delivery.deadline >= subscription.clock():
                    buffer.popleft()
                    prefetch.yielded += 1
                    hand.append(delivery)
                    return delivery.message
            elif prefetch.low and len(buffer) == prefetch.low:
                # Once per refill: the request for it goes out now, not when the buffer is empty,
                # and the broker works on it while the caller works on the rest.
                await asyncio.sleep(0)
        while not self._host.pop(hand):
            if not await self._wait(1, None):
                raise StopAsyncIteration
        return hand[-1].message

    def _finish(self, hand: list[Delivery]) -> None:
        if self._host.subscription is not None:
            self._host.subscription.finish(hand)
        hand.clear()  # of a stream that has been closed

    async def _wait(self, wanted: int, timeout: float | None, *, ask: bool = True) -> bool:
        __tracebackhide__ = True
        if self._iterating:
            raise RuntimeError("another task is waiting on this stream; open one stream per task")
        self._iterating = True
        try:
            return await self._wait_among(wanted, timeout, ask=ask)
        finally:
            self._iterating = False

    async def _wait_among(self, wanted: int, timeout: float | None, *, ask: bool) -> bool:
        """Wait for a message, as one of many tasks."""
        __tracebackhide__ = True
        host = self._host
        if self._ended:
            return False
        if host.subscription is None:
            await host.run(host.open())
        if host.subscription is None:  # the backend was closed
            return False
        return await host.run(host.subscription.wait(wanted, timeout, ask=ask))

    async def take(
        self, n: int = 1, timeout: float | None = None, *, quiet: float | None = None
    ) -> list[Message]:
        """Return up to ``n`` messages, in order; acks those handed over before.

        The messages it returns are acked by the next call, or by leaving ``async with`` without
        an exception. A cancelled call puts everything back.

        Args:
            n: How many to wait for.
            timeout: Seconds to wait in total; then it returns what has arrived. ``None`` waits
                until there are ``n``, or the stream is closed.
            quiet: Seconds without a further message after which it returns what has arrived, if
                anything has; ``None`` waits on.

        Raises:
            ConfigurationError: If ``n`` is negative.
            AbeError: What ended the stream, if the broker refused it permanently.
        """
        __tracebackhide__ = True
        self._host.enter()
        self._finish(self._hand)
        taken = await self._collect(n, timeout, quiet, self._wait)
        self._hand += taken
        self._took = True
        return [delivery.message for delivery in taken]

    async def receive(
        self, n: int = 1, timeout: float | None = None, *, quiet: float | None = None
    ) -> list[Message]:
        """Return up to ``n`` messages that the caller settles; many tasks may call it at once.

        The messages are never acked by asking for more; their leases are extended until they are
        settled or the stream is closed. A cancelled call puts everything back.

        Args:
            n: How many to wait for.
            timeout: Seconds to wait in total; ``None`` waits until there are ``n``.
            quiet: Seconds without a further message after which it returns what has arrived, if
                anything has; ``None`` waits on.

        Returns:
            The messages; none at the end of the stream.

        Raises:
            ConfigurationError: If ``n`` is negative.
            AbeError: What ended the stream, if the broker refused it permanently.
        """
        __tracebackhide__ = True
        taken: list[Delivery] = []
        if n != 1 or not self._host.pop(taken):
            taken = await self._collect(n, timeout, quiet, self._wait_among)
        for delivery in taken:
            delivery.owned = True
        return [delivery.message for delivery in taken]

    def isolate_suspects(self) -> None:
        """From now on, hand over a suspect only when all received messages are settled.

        A suspect is a message at its third attempt or later, which may be what kills its
        consumers. Nothing is handed over beside it until it is settled.
        """
        self.subscription.isolates = True

    async def begin(self, message: Message) -> int:
        """Record with the broker that handling of a message from `receive` begins.

        Returns:
            How often it had begun before; 0 where the receiver keeps no such count.

        Raises:
            AbeError: If the broker refuses it permanently.
        """
        __tracebackhide__ = True
        delivery = message._delivery
        if not isinstance(delivery, Delivery):  # settled, or its lease was lost
            return 0
        return await self._host.run(self.subscription.begin(delivery))

    async def _collect(
        self, n: int, timeout: float | None, quiet: float | None, wait: Callable[..., Any]
    ) -> list[Delivery]:
        __tracebackhide__ = True
        if n < 0:
            raise ConfigurationError(f"n is {n!r}; it must be 0 or more messages")
        host, time = self._host, get_running_loop().time
        deadline = None if timeout is None else time() + timeout
        taken: list[Delivery] = []
        try:
            while len(taken) < n:
                if host.pop(taken):
                    continue
                left = None if deadline is None else deadline - time()
                if quiet is not None and taken:
                    left = quiet if left is None else min(left, quiet)
                if not await wait(n - len(taken), left, ask=not taken):
                    break
        except BaseException:
            if taken:
                assert host.subscription is not None
                host.subscription.give_back(taken)
            raise
        if taken and host.subscription is not None and host.subscription.closing:
            host.subscription.give_back(taken)
            return []
        return taken

    def unread(self, message: Message) -> bool:
        """Put a message in hand back at the front, as if it had not been handed over.

        For code that runs ``__anext__`` in a task of its own and did not pick up the result: the
        message would otherwise count as finished at the next call.

        Returns:
            False if the message is settled or the stream is closing.
        """
        subscription = self._host.subscription
        for delivery in self._hand:
            if delivery.message is message:
                break
        else:
            return False
        if subscription is None or delivery.claims or subscription.stopping or self._ended:
            return False
        self._hand.remove(delivery)
        subscription.give_back([delivery])
        return True

    async def flush(self) -> None:
        """Return once the broker has accepted every settlement recorded so far.

        Raises:
            AbeError: If it refused one permanently.
        """
        __tracebackhide__ = True
        if self._host.subscription is not None:
            await self._host.run(self._host.subscription.flush())

    def stop(self) -> None:
        """Take no more: a waiting ``__anext__`` ends, and buffered messages are released.

        Messages in hand, and those of `receive`, can still be settled until `aclose`.
        """
        subscription = self._host.subscription
        if subscription is None:
            self._ended = True
        elif subscription.loop in (None, get_running_loop()):
            subscription.stop()
        else:
            subscription.loop.call_soon_threadsafe(subscription.stop)

    async def aclose(self) -> None:
        """Release messages in hand and buffered ones, flush settlements, disconnect.

        A task waiting in ``__anext__`` sees `StopAsyncIteration`. Closing twice is fine.

        Raises:
            AbeError: If a settlement failed permanently and no call has raised that yet.
        """
        __tracebackhide__ = True
        host = self._host
        try:
            if host.subscription is not None:
                await host.run(host.leave(self._hand))
        finally:
            self._ended = host.subscription is None or not host.subscription.here

    async def __aenter__(self) -> Self:
        """Connect; when it returns, the group exists."""
        __tracebackhide__ = True
        host = self._host
        try:
            await host.run(host.open())
            assert host.subscription is not None
            await host.run(host.subscription.open())
        except BaseException:  # then __aexit__ is not called
            self._ended = True
            if host.subscription is not None:
                await host.run(host.subscription.close())
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        __tracebackhide__ = True
        subscription = self._host.subscription
        if kind is None and self._took:
            self._finish(self._hand)
        name = subscription.backend if subscription is not None else ""
        with ExitGuard(kind, "a stream of backend", name):
            await self.aclose()

    def __del__(self) -> None:
        host: StreamHost | None = getattr(self, "_host", None)
        if host is None or self._ended or sys.is_finalizing():
            return
        subscription = host.subscription
        if subscription is None or not subscription.here:
            return
        host.forget(self._hand, self)

    @property
    def capabilities(self) -> Capabilities:
        """What can be done with its messages; a plain backend's iterator can do nothing."""
        return self._can

    @property
    def closed(self) -> bool:
        """Whether no more messages will come."""
        subscription = self._host.subscription
        if subscription is None:
            return self._ended
        return (self._ended or subscription.stopping) and not subscription.buffer
