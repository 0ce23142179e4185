"""Publishing: one call of a script for each batch."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from abe.backends.message_queue.base import Outgoing, Publisher, log
from abe.errors import ConnectionLostError, PublishError
from abe_backend_redis import scripts
from abe_backend_redis.failures import RefusedError, UnreachedError, passes
from abe_backend_redis.link import Link

__all__ = ["Limits", "RedisPublisher"]

logger = logging.getLogger(__name__)

MAX_ITEMS = 500
MAX_BYTES = 1 << 20


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
        return self.length > 0 or self.age > 0


class RedisPublisher(Publisher[Outgoing]):
    """Publishes in order, again while Redis has done nothing.

    Should Redis have lost its data, the groups that ``open_groups`` returns are made first.
    """

    def __init__(
        self,
        link: Link,
        limits: Limits,
        timeout: float,
        prefix: str,
        open_groups: Callable[[], Sequence[str]],
    ) -> None:
        super().__init__(
            self._publish,
            max_items=MAX_ITEMS,
            max_bytes=MAX_BYTES,
            size=lambda item: len(item.body),
            timeout=timeout,
            # What may have been stored would be stored twice.
            retry=lambda error: isinstance(error, UnreachedError),
        )
        self._link = link
        self._limits = limits
        self._prefix = prefix
        self._open_groups = open_groups

    async def aclose(self) -> None:
        await super().aclose()
        await self._link.aclose(for_good=True)

    async def _publish(self, items: Sequence[Outgoing]) -> Mapping[int, Exception]:
        limits, groups = self._limits, self._open_groups()
        head = (limits.backlog, limits.length, int(limits.age * 1000), int(limits.drop))
        args: list[str | int] = []
        plain = not any(limits)
        for key, body, headers, delay in items:
            text = f"{key} {body}"
            if headers or delay:
                written = json.dumps(headers, ensure_ascii=False) if headers else ""
                # Rounded up: a delay is a lower bound.
                args += ("", text, written, int(delay * 1000 + 0.999))
                plain = False
            else:
                args.append(text)
        try:
            answer = await self._link.run(
                scripts.PUBLISH, "plain" if plain else "", *head, len(groups), *groups, *args
            )
        except UnreachedError:
            raise
        except ConnectionLostError as error:
            text = f"no answer, so it may or may not have been stored: {error}"
            raise PublishError(text, retryable=True) from error
        except RefusedError as error:
            raise PublishError(str(error)) from error
        if isinstance(answer, int):
            return {}
        accepted, problem, dropped = answer
        if dropped:
            log(
                logger,
                logging.WARNING,
                "retention dropped %d messages of %s that a group had not settled "
                "(ABE_REDIS_DROP_UNSETTLED)",
                *(dropped, self._prefix),
                extra={"backend": "redis"},
            )
        return self._problems(accepted, problem, len(items))

    def _problems(self, accepted: int, problem: bytes, total: int) -> Mapping[int, Exception]:
        """Return why items were not accepted: the first by Redis, the others as not tried."""
        if accepted == total:
            return {}
        # Redis 6.2 says which line of the script it was.
        text = re.sub(r"^@user_script: \d+: -?", "", problem.decode(errors="replace").strip())
        if full := text == "FULL":
            held = f"{self._limits.backlog} messages (ABE_REDIS_MAX_BACKLOG)"
            text = f"the namespace {self._prefix!r} holds {held}"
        refused = PublishError(f"Redis refuses it: {text}", retryable=full or passes(text))
        others = refused if refused.retryable else UnreachedError(f"not tried: {text}")
        return {accepted: refused, **dict.fromkeys(range(accepted + 1, total), others)}
