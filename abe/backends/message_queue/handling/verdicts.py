"""The verdict on a handler's failure: redelivered, retried here, or given up."""

from __future__ import annotations

import copy
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from abe.backends.message_queue.base import SUSPECT_ATTEMPT
from abe.backends.message_queue.base.backoff import transient
from abe.backends.message_queue.base.capabilities import Capabilities
from abe.backends.message_queue.base.dead_letters import reason_for
from abe.backends.message_queue.base.log_records import log_message
from abe.backends.message_queue.base.message import Message
from abe.backends.message_queue.base.outcome import Outcome
from abe.backends.message_queue.base.receiver import Delivery
from abe.backends.message_queue.handling.counters import Counters
from abe.backends.message_queue.handling.dead_letters import DeadLetterKey
from abe.backends.message_queue.handling.retry import RetryPolicy
from abe.errors import Reject, Retry
from abe.types import ConsumerGroup

__all__ = ["Verdicts", "release"]

logger = logging.getLogger(__name__)


class Verdicts:
    """Settles messages by the outcome of their handling.

    Nothing that a handler, its exception or its message does raises here: a verdict that fails is
    logged, and the message is redelivered. ``stopped_within`` waits some seconds and tells whether
    to stop.

    Attributes:
        needs_original: Whether a retry or a dead letter is made from the message itself: elsewhere
            the broker has the original.
    """

    def __init__(
        self,
        can: Capabilities,
        policy: RetryPolicy,
        dead_key: DeadLetterKey | None,
        counters: Counters,
        *,
        backend: str,
        group: ConsumerGroup,
        stopped_within: Callable[[float], Awaitable[bool]],
    ) -> None:
        self._can = can
        self._policy = policy
        self._dead_key = dead_key
        self._counters = counters
        self._backend = backend
        self._group = group
        self._stopped_within = stopped_within
        self._redelivers = bool(can.nack_delay) and can.attempts != "none"
        self.needs_original = not self._redelivers or (not can.reject and dead_key is not None)

    def preserve(self, message: Message) -> Callable[[], None]:
        """Return a function that undoes, once, the changes a handler makes to ``message``."""
        payload = _copy(message)
        metadata = {name: getattr(message, name) for name in ("id", "key", "_time", "attempt")}
        metadata["headers"] = dict(message.headers)

        def restore() -> None:
            message.clear()
            message.update(payload)
            for name, value in metadata.items():
                setattr(message, name, value)

        return restore

    async def failure(
        self, message: Message, error: BaseException, restore: Callable[[], None] | None
    ) -> bool:
        """Settle a message whose handler raised; True if it is to be tried again in process."""
        try:
            if restore is not None:
                restore()
            return await self._settle(message, error)
        except Exception as trouble:
            text = "settling a failed message failed; it is redelivered"
            self.log(logging.ERROR, text, message, trouble)
        with suppress(Exception):
            delay = min(self._policy.max_delay, self._can.nack_delay)
            await (message.nack(delay) if self._redelivers else message.release())
        return False

    async def _settle(self, message: Message, error: BaseException) -> bool:
        if message.outcome is not None:
            lost = message.outcome is Outcome.LOST
            self._log_failure(message, error, "lease lost" if lost else "the handler settled it")
            return False
        if isinstance(error, Reject):
            self.log(logging.INFO, f"rejected by the handler: {error.reason}", message)
            await self.give_up(message, error.reason)
            return False
        if _handled(message) >= self._policy.max_attempts:
            dropped = not self._can.reject and self._dead_key is None  # which is an ERROR itself
            level = logging.WARNING if dropped else logging.ERROR
            self._log_failure(message, error, "no attempts left", level)
            await self.give_up(message, reason_for(error))
            return False
        delay = error.delay if isinstance(error, Retry) else None
        if delay is None or not delay >= 0:
            delay = self._policy.delay(message.attempt)
        self._counters.retried += 1
        self._log_failure(message, error, f"trying again in {delay:.3g} s")
        if self._redelivers:
            await message.nack(min(delay, self._can.nack_delay))
            return False
        if await self._stopped_within(delay):
            await release(message)
            return False
        message.attempt += 1
        return message.outcome is None  # otherwise its lease was lost, and it is redelivered

    async def give_up(self, message: Message, reason: str) -> None:
        """Reject the message, or publish it under the dead-letter key, or drop it with an ERROR."""
        if self._can.reject:
            await message.reject(reason)
        elif self._dead_key is None:
            self._drop(message, reason)
            await message.ack()
        elif await self._publish_dead(self._dead_key, message, reason):
            await message.ack()
        else:
            await release(message)
            return
        self._counters.dead += 1

    async def give_up_unfinished(self, message: Message, begun: int) -> None:
        reason = f"handling has begun {begun} times without a verdict; not handled again"
        self.log(logging.ERROR, reason, message)
        await self.give_up(message, reason)

    def _drop(self, message: Message, reason: str) -> None:
        self.log(logging.ERROR, "dropped: " + reason.partition("\n")[0], message)

    async def _publish_dead(self, dead: DeadLetterKey, message: Message, reason: str) -> bool:
        """Publish, however often the broker is away; False if told to stop before that."""
        failures = 0
        while True:
            try:
                await dead.publish(message, reason)
            except Exception as error:  # a plain backend may raise anything
                if not transient(error):
                    text = f"cannot be published to {dead.key!r}"
                    self.log(logging.ERROR, text, message, error)
                    self._drop(message, reason)
                    return True
                failures += 1
                delay = self._policy.delay(failures)
                text = f"cannot publish to {dead.key!r}; trying again in {delay:.3g} s"
                self.log(logging.WARNING, text, message, error)
                if await self._stopped_within(delay):
                    return False
            else:
                return True

    def _log_failure(
        self, message: Message, error: BaseException, next_step: str, level: int = logging.WARNING
    ) -> None:
        if isinstance(error, Retry):
            level = min(level, logging.INFO) if level < logging.ERROR else level
            self.log(level, f"the handler asks for a retry; {next_step}", message)
        else:
            self.log(level, f"handler failed; {next_step}", message, error)

    def log(
        self, level: int, text: str, message: Message, error: BaseException | None = None
    ) -> None:
        log_message(
            logger, level, text, message, backend=self._backend, group=self._group, error=error
        )


def _handled(message: Message) -> int:
    """Return how often a handler had the message, as far as the broker has kept count.

    It counts from the first suspect attempt on; those before are taken to have been handled. A
    lapsed lease in a buffer, or a neighbour that killed the process, is no failure of a handler.
    """
    delivery = message._delivery
    if isinstance(delivery, Delivery) and delivery.began:
        return min(message.attempt, delivery.begun + SUSPECT_ATTEMPT)
    return message.attempt


async def release(message: Message) -> None:
    """Release a message that is not settled, where the backend can; elsewhere the lease lapses."""
    if message.outcome is None:
        with suppress(NotImplementedError):
            await message.release()


def _copy(payload: dict[str, object]) -> dict[str, object]:
    try:
        return copy.deepcopy(dict(payload))
    except Exception:  # a plain backend's payload may hold anything
        return dict(payload)
