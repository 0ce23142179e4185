"""`Mover`: a delayed nack, a reject or a replay, where the broker has none of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from typing import Generic, TypeVar

from abe.backends.message_queue.base.backoff import transient

__all__ = ["Mover"]

T = TypeVar("T", bound=Hashable)


class Mover(Generic[T]):
    """Publishes a copy of a message, then settles the original.

    In this order a crash in between repeats the message; in the other it would lose it. A move
    that failed halfway publishes no second copy when it is repeated, so receivers that follow one
    another on a queue should share their mover.

    Args:
        copy: Publishes the copy of one item.
        settle: Settles the originals; returns those that failed, each with its error, or None if
            it belongs to somebody else by now.
    """

    def __init__(
        self,
        copy: Callable[[T], Awaitable[object]],
        settle: Callable[[Sequence[T]], Awaitable[Iterable[tuple[T, Exception | None]]]],
    ) -> None:
        self._copy = copy
        self._settle = settle
        self._copied: set[T] = set()
        """Items whose original is not settled yet."""

    async def move(self, items: Sequence[T]) -> list[tuple[T, Exception | None]]:
        """Move ``items``; returns those that failed, with the error of either half.

        A `transient` error means: move it again.
        """
        failures: dict[T, Exception | None] = {}
        for item in items:
            if item not in self._copied:
                try:
                    await self._copy(item)
                except Exception as error:
                    failures[item] = error
                else:
                    self._copied.add(item)
        copied = [item for item in items if item not in failures]
        if copied:
            failures.update(await self._settle(copied))
        for item in copied:
            problem = failures.get(item)
            if problem is None or not transient(problem):
                self._copied.discard(item)
        return list(failures.items())
