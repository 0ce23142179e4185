"""`MessageStream`: what ``consume()`` of every first-party backend returns."""

from __future__ import annotations

import asyncio
import logging
import sys
import warnings
from asyncio import get_running_loop
from collections.abc import Callable
from types import TracebackType
from typing import Self

from abe.backends.message_queue.base.capabilities import Capabilities
from abe.backends.message_queue.base.message import Message
from abe.backends.message_queue.base.receiver import Delivery, Receiver
from abe.backends.message_queue.base.subscription.subscription import StreamEngine
from abe.types import ConsumerGroup

__all__ = ["MAX_HOLD", "MessageStream"]

logger = logging.getLogger(__name__)

MAX_HOLD = 900.0


class MessageStream:
    """An async iterator over the messages of a group, settling on resume.

    Asking for the next message acks the previous one, if it was neither settled nor detached. A
    crash, a cancellation, a ``break`` or an exception in the loop body never acks it: the message
    comes back. (Kafka's auto-commit is the precedent: ``poll()`` commits what the previous poll
    returned.) To keep the last message of a loop, ``await message.ack()`` before ``break``, or
    use `take`.

    A timeout or cancellation around ``__anext__`` leaves the stream usable and loses nothing.
    Bound to the event loop that first uses it; one task at a time may wait on it. Close it with
    ``async with`` or `aclose`: messages in hand and buffered ones are then given back. A stream
    dropped with a message in hand warns (`ResourceWarning`) and gives it back if it can.

    Args:
        factory: Makes the `Receiver`; called again after a lost connection.
        capabilities: What the backend declares.
        backend: The backend's name, for errors and the log.
        group: The consumer group.
        prefetch: Most messages to receive ahead of the caller; ``None`` adapts to its speed.
        max_hold: Longest time, in seconds, for which one message's lease is extended.
        on_opened: Called with the engine when the stream is first used.
        on_closed: Called with it once the stream is closed.
    """

    __slots__ = ("__weakref__", "_engine", "_took")

    def __init__(
        self,
        factory: Callable[[], Receiver],
        *,
        capabilities: Capabilities,
        backend: str,
        group: ConsumerGroup = None,
        prefetch: int | None = None,
        max_hold: float = MAX_HOLD,
        on_opened: Callable[[StreamEngine], None] | None = None,
        on_closed: Callable[[StreamEngine], None] | None = None,
    ) -> None:
        self._engine = StreamEngine(
            factory,
            capabilities=capabilities,
            backend=backend,
            group=group,
            prefetch=prefetch,
            max_hold=max_hold,
            on_opened=on_opened,
            on_closed=on_closed,
        )
        self._took = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        """Ack the message in hand and return the next one, waiting until there is one.

        Raises:
            StopAsyncIteration: Once the stream is closed.
            AbeError: What ended the stream, if the broker refused it for good.
        """
        engine = self._engine
        if engine.loop is not get_running_loop():
            engine.start()
        if engine.hand:
            engine.resume()
        pace = engine.pace
        if len(engine.buffer) > pace.easy:  # nearly always, while messages come fast
            delivery = engine.buffer.popleft()
            pace.yielded += 1
        else:
            if pace.low and len(engine.buffer) == pace.low:
                # Once per refill: the request for it goes out now, not when the buffer is empty,
                # and the broker works on it while the caller works on the rest.
                await asyncio.sleep(0)
            found = engine.pop() if engine.buffer else await engine.next()
            if found is None:
                raise StopAsyncIteration
            delivery = found
        engine.hand.append(delivery)
        self._took = False
        return delivery.message

    async def take(
        self, n: int = 1, timeout: float | None = None, *, quiet: float | None = None
    ) -> list[Message]:
        """Return up to ``n`` messages, in order; acks what was handed over before.

        What it returns is acked by the next call, or by leaving ``async with`` without an
        exception. A cancelled call puts everything back.

        Args:
            n: How many to wait for.
            timeout: Seconds to wait in total; then it returns what has arrived. ``None`` waits
                until there are ``n``, or the stream is closed.
            quiet: Seconds without a further message after which it returns what has arrived, if
                anything has; ``None`` waits on.
        """
        engine = self._engine
        engine.start()
        engine.resume()
        deadline = None
        if timeout is not None:
            deadline = get_running_loop().time() + timeout
        taken: list[Delivery] = []
        try:
            while len(taken) < n:
                limit = deadline
                if quiet is not None and taken:
                    silence = get_running_loop().time() + quiet
                    limit = silence if deadline is None else min(deadline, silence)
                if engine.buffer:
                    delivery: Delivery | None = engine.pop()
                else:
                    delivery = await engine.next(n - len(taken), limit, ask=not taken)
                if delivery is None:
                    break
                taken.append(delivery)
        except BaseException:
            engine.put_back(taken)
            raise
        if engine.closing:
            return []  # they were given back
        engine.hand.extend(taken)
        self._took = True
        return [delivery.message for delivery in taken]

    def unread(self, message: Message) -> bool:
        """Put a message in hand back at the front, as if it had not been handed over.

        For whoever runs ``__anext__`` in a task of its own and did not pick up the result: the
        message would otherwise count as finished at the next call.

        Returns:
            False if the message is settled or the stream is closing.
        """
        return self._engine.unread(message)

    async def flush(self) -> None:
        """Return once the broker has accepted every settlement recorded so far.

        Raises:
            AbeError: If it refused one for good.
        """
        await self._engine.flush()

    def stop(self) -> None:
        """Take no more: a waiting ``__anext__`` ends, and buffered messages are given back.

        Messages in hand, and detached ones, can still be settled until `aclose`.
        """
        self._engine.stop()

    async def aclose(self) -> None:
        """Give back messages in hand and buffered ones, flush settlements, disconnect.

        A task waiting in ``__anext__`` sees `StopAsyncIteration`. Closing twice is fine.

        Raises:
            AbeError: If a settlement failed for good and no call has raised that yet.
        """
        await self._engine.finish()

    async def __aenter__(self) -> Self:
        """Connect; when it returns, the group exists."""
        try:
            await self._engine.open()
        except BaseException:  # then __aexit__ is not called
            await self._engine.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            if self._took:
                self._engine.resume()
            await self.aclose()
            return
        try:
            await self.aclose()
        except Exception:
            # The exception of the block matters more; a cancellation must not be replaced.
            name = self._engine.backend
            logger.exception("closing a stream of backend %s failed", name, extra={"backend": name})

    def __del__(self) -> None:
        engine: StreamEngine | None = getattr(self, "_engine", None)
        if engine is None or sys.is_finalizing():
            return
        hand = [d.message for d in engine.hand if d.message.outcome is None and not d.detached]
        engine.abandon()  # first: warnings may be errors
        for message in hand:
            text = (
                f"a stream of backend {engine.backend!r} was dropped with message"
                f" {message.id} of key {message.key!r} unsettled; it will be delivered again."
                " Close streams with 'async with', and ack the last message before 'break'"
            )
            logger.warning(
                text,
                extra={
                    "backend": engine.backend,
                    "group": engine.group,
                    "key": message.key,
                    "id": message.id,
                    "attempt": message.attempt,
                },
            )
            warnings.warn(text, ResourceWarning, stacklevel=2, source=self)

    @property
    def capabilities(self) -> Capabilities:
        """What can be done with its messages; a plain backend's iterator can do nothing."""
        return self._engine.capabilities

    @property
    def closed(self) -> bool:
        """Whether no more messages will come."""
        return self._engine.stopping and not self._engine.buffer
