"""Publishing: at once when nothing is on its way, otherwise together with whatever else waits."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from abe.backends.message_queue.base import Outgoing
from abe.errors import ConfigurationError, ConnectionLostError, PublishError
from abe_backend_redis import scripts
from abe_backend_redis.failures import RefusedError, UnreachedError, moving, passes
from abe_backend_redis.link import Link

__all__ = ["Limits", "Publisher"]

logger = logging.getLogger(__name__)

MAX_ITEMS = 500
MAX_BYTES = 1 << 20
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0


class Limits(NamedTuple):
    """What the broker may hold.

    Attributes:
        backlog: Most messages in the namespace; more are refused. 0 = no limit.
        length: Most messages retained of each key. 0 = settled ones go at once.
        age: Seconds for which a message is retained. 0 = settled ones go at once.
        drop: Whether ``length`` and ``age`` drop messages that a group has not settled.
    """

    backlog: int = 0
    length: int = 0
    age: float = 0.0
    drop: bool = False

    @property
    def keep(self) -> bool:
        """Whether settled messages are kept for later groups."""
        return self.length > 0 or self.age > 0


class _Waiting(NamedTuple):
    items: Sequence[Outgoing]
    done: asyncio.Future[None]


class Publisher:
    """Sends messages in order, one script call at a time.

    Args:
        link: A connection of its own.
        limits: What the broker may hold.
        timeout: Seconds for which a broker that cannot be reached is tried again.
        prefix: Named in warnings.
        open_groups: Returns the groups that are made again before anything is published, should
            Redis have lost its data.
    """

    def __init__(
        self,
        link: Link,
        limits: Limits,
        timeout: float,
        prefix: str,
        open_groups: Callable[[], Sequence[str]],
    ) -> None:
        self._link = link
        self._timeout = timeout
        self._prefix = prefix
        self._head = ("", limits.backlog, limits.length, int(limits.age * 1000), int(limits.drop))
        self._limits = limits
        self._open_groups = open_groups
        self._queue: list[_Waiting] = []
        self._drain: asyncio.Task[None] | None = None
        self._idle = asyncio.Event()
        """Whether nothing is on its way, nor waits."""
        self._idle.set()
        self._closing = asyncio.Event()

    async def send(self, items: Sequence[Outgoing]) -> None:
        """Return once all of ``items`` are accepted.

        Raises:
            PublishError: If some were not, or may not have been.
            ConnectionLostError: If the broker cannot be reached; nothing was sent.
        """
        if not self._idle.is_set():
            waiting = _Waiting(items, asyncio.get_running_loop().create_future())
            self._queue.append(waiting)
            await waiting.done
            return
        self._idle.clear()
        try:
            await self._transmit(items)
        finally:
            self._go_on()

    async def aclose(self) -> None:
        """Send what waits, but nothing a second time, and disconnect."""
        self._closing.set()
        await self._idle.wait()
        await self._link.aclose(for_good=True)

    def _go_on(self, drain: asyncio.Task[None] | None = None) -> None:
        """Send what waits, unless that was cancelled: then who waits is cancelled too."""
        if self._queue and not (drain is not None and drain.cancelled()):
            self._drain = asyncio.create_task(self._send_waiting(), name="abe-redis-publish")
            self._drain.add_done_callback(self._go_on)
            return
        for waiting in self._queue:
            waiting.done.cancel()
        self._queue.clear()
        self._idle.set()

    async def _send_waiting(self) -> None:
        while self._queue:
            batch = self._next_batch()
            if batch:
                await self._send_batch(batch)
            # Those just woken publish again: let them join the next batch.
            await asyncio.sleep(0)

    def _next_batch(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        count = 0
        while self._queue and (not batch or count + len(self._queue[0].items) <= MAX_ITEMS):
            waiting = self._queue.pop(0)
            if not waiting.done.done():  # else: cancelled before anything was sent
                batch.append(waiting)
                count += len(waiting.items)
        return batch

    async def _send_batch(self, batch: list[_Waiting]) -> None:
        error: Exception | None = None
        accepted = sum(len(waiting.items) for waiting in batch)
        try:
            await self._transmit([item for waiting in batch for item in waiting.items])
        except PublishError as refused:
            error = refused
            accepted = len(refused.published)
        except Exception as failure:  # whatever it is, those who wait have to learn it
            error, accepted = failure, 0
        for waiting in batch:
            own = min(accepted, len(waiting.items))
            accepted -= own
            if waiting.done.done():
                continue
            if own == len(waiting.items) or error is None:
                waiting.done.set_result(None)
            elif isinstance(error, PublishError):
                waiting.done.set_exception(_partial(error, own, len(waiting.items)))
            else:
                waiting.done.set_exception(error)

    async def _transmit(self, items: Sequence[Outgoing]) -> None:
        accepted = 0
        while accepted < len(items):
            chunk, args = _chunk(items, accepted)
            try:
                answer = await self._ask(args)
            except UnreachedError as error:
                if not accepted:
                    raise ConnectionLostError(str(error)) from error
                raise _error(str(error), accepted, len(items), retryable=True) from error
            except ConnectionLostError as error:
                text = f"no answer, so it may or may not have been stored: {error}"
                raise _error(text, accepted, len(items), retryable=True) from error
            except ConfigurationError as error:
                if not (accepted or isinstance(error, RefusedError)):
                    raise  # the credentials, before anything was sent
                raise _error(str(error), accepted, len(items), retryable=False) from error
            if isinstance(answer, int):
                accepted += answer
                continue
            number, problem, dropped = answer
            accepted += number
            self._warn(dropped)
            if number < chunk and not moving(_reason(problem)):
                self._refuse(_reason(problem), accepted, len(items))

    async def _ask(self, args: Sequence[str | int]) -> Any:
        """Return the script's answer; tries again while Redis has done nothing and there is time.

        Raises:
            UnreachedError: If that was so until the end.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout
        groups = self._open_groups()
        pause = FIRST_PAUSE
        while True:
            try:
                answer = await self._link.run(
                    scripts.PUBLISH, *self._head, len(groups), *groups, *args
                )
                if isinstance(answer, int) or answer[0] or not moving(_reason(answer[1])):
                    return answer
                raise await self._link.failed(_reason(answer[1]))
            except UnreachedError:
                if self._closing.is_set() or loop.time() + pause > deadline:
                    raise
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._closing.wait()
            pause = min(pause * 2, LONGEST_PAUSE)

    def _refuse(self, problem: str, accepted: int, total: int) -> None:
        full = problem == "FULL"
        if full:
            problem = (
                f"the namespace {self._prefix!r} holds {self._limits.backlog} messages "
                "(ABE_REDIS_MAX_BACKLOG)"
            )
        retryable = full or passes(problem)
        raise _error(f"Redis refuses it: {problem}", accepted, total, retryable=retryable)

    def _warn(self, dropped: int) -> None:
        if dropped:
            logger.warning(
                "retention dropped %d messages of %s that a group had not settled "
                "(ABE_REDIS_DROP_UNSETTLED)",
                dropped,
                self._prefix,
                extra={"backend": "redis"},
            )


def _reason(problem: bytes) -> str:
    # Redis 6.2 says which line of the script it was.
    return re.sub(r"^@user_script: \d+: -?", "", problem.decode(errors="replace").strip())


def _chunk(items: Sequence[Outgoing], start: int) -> tuple[int, list[str | int]]:
    """Return how many items from ``start`` go into one call, and its arguments."""
    args: list[str | int] = []
    size = count = 0
    for item in items[start : start + MAX_ITEMS]:
        size += len(item.body)
        if count and size > MAX_BYTES:
            break
        headers = json.dumps(item.headers, ensure_ascii=False) if item.headers else ""
        # Rounded up: a delay is a lower bound.
        delay = int(item.delay * 1000 + 0.999) if item.delay else 0
        args += (item.key, item.body, headers, delay)
        count += 1
    return count, args


def _error(text: str, accepted: int, total: int, *, retryable: bool) -> PublishError:
    failed = dict.fromkeys(range(accepted, total), text)
    what = f"{total - accepted} of {total} messages were not published: " if total > 1 else ""
    return PublishError(
        f"{what}{text}", retryable=retryable, published=range(accepted), failed=failed
    )


def _partial(error: PublishError, accepted: int, total: int) -> PublishError:
    """Return one caller's share of the error of a batch."""
    reason = next(iter(error.failed.values()), str(error))
    own = _error(reason, accepted, total, retryable=error.retryable)
    own.__cause__ = error.__cause__
    return own
