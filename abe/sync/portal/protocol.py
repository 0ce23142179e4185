"""What the facade needs of an event loop that owns its backends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

__all__ = ["Portal"]

T = TypeVar("T")


class Portal(Protocol):
    """One event loop, on which every backend of the facade lives, and calls into it.

    Use `get_portal`: there is one in each process.

    Attributes:
        loop: The event loop.
        closers: Coroutine functions that are run, concurrently, when the interpreter exits.
        threaded: Whether the loop runs on a thread of its own.
        exiting: Whether the interpreter is exiting and the closers have been started.
        refuses: Whether the closers have ended, after which nothing is begun any more.
    """

    loop: asyncio.AbstractEventLoop
    closers: set[Callable[[], Coroutine[Any, Any, object]]]
    threaded: bool
    exiting: bool
    refuses: bool

    @property
    def forked(self) -> bool:
        """Whether this is the portal of a parent process."""

    @property
    def is_current(self) -> bool:
        """Whether a blocking call made here would wait for itself."""

    def call(
        self, coroutine: Coroutine[Any, Any, T], *, keep: Callable[[T], object] | None = None
    ) -> T:
        """Run ``coroutine`` on the loop and block until it has ended; return its result.

        ``keep`` is called on the loop with a result that an interrupt keeps from the caller.
        """

    async def bridge(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run ``coroutine`` on the loop and await it, from any event loop."""

    def post(self, callback: Callable[..., object], *arguments: Any) -> bool:
        """Call ``callback`` on the loop soon, from any thread; False if the loop is gone."""

    def post_from_finalizer(self, callback: Callable[..., object]) -> None:
        """`post` from ``__del__``."""

    def refusal(self) -> BaseException:
        """Return what a call raises once the interpreter is exiting."""

    def close(self, grace: float = ...) -> None:
        """Run the closers, for ``grace`` seconds at most, and stop the loop; idempotent."""
