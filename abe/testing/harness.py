"""What a provider author gives the contract suite: how to make backends, and hooks for the rest."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable
from typing import Any

from abe.backends.message_queue.base import Capabilities
from abe.types import ConsumerGroup, MessageQueueBackendProtocol

__all__ = ["GROUPS", "HOOKS", "ODD_GROUPS", "Harness"]

HOOKS = (
    "advance_time",
    "cut_connections",
    "kill_consumer",
    "kill_publisher",
    "lose_data",
    "make_bounded",
    "make_short_lease",
    "make_unreachable",
    "make_without_groups",
    "reopen",
    "restart_broker",
)
"""What a case may need of a harness beyond `Harness.make`; see the methods of `Harness`."""

ODD_GROUPS: tuple[ConsumerGroup, ...] = (
    None,
    "g",
    "G",
    "g.sub",
    "with-dash_and:colon/slash%25",
    "größe.группа.群",
    "None",
    "default",
    "x" * 200,
)
GROUPS: tuple[ConsumerGroup, ...] = (*ODD_GROUPS, "a", "b", *(f"g{n}" for n in range(7)))
"""Every group the cases consume from, for brokers whose groups have to be configured."""


class Harness:
    """Makes backends for the contract suite, and does to their broker what only its author can.

    Only `make` is required. A case that needs a hook which is not overridden is skipped by name.
    Every method may be a plain or a coroutine function; all are called on the case's event loop.

    Attributes:
        patience: Seconds to wait for what must happen; every time limit is a multiple of it. What
            a cut connection had received may take a lease longer.
        quiet: Seconds to wait for what must not happen. Long enough for the broker to deliver.
        short_delay: The shortest delay, in seconds, that the broker can tell from none.
        reopen: Whether `make`, called again with the same namespace, gives a further backend on
            the same data. False for toys that keep their messages in the instance: then `make`
            gives the same instance again, and cases that need two are skipped.
        unavailable: Hooks that are implemented but cannot work for this backend.
    """

    patience: float = 10.0
    quiet: float = 0.2
    short_delay: float = 0.3
    reopen: bool = True
    unavailable: frozenset[str] = frozenset()

    declared: Capabilities | None = None
    """What the backend made last declares; set by the suite, for reports."""

    def make(
        self, namespace: str
    ) -> MessageQueueBackendProtocol | Awaitable[MessageQueueBackendProtocol]:
        """Return a new backend whose keys, groups and messages are those of ``namespace`` alone.

        ``namespace`` is a short identifier, new for every case; called again with the same one
        it returns a further backend on the same data. If groups have to be configured, `GROUPS`
        are those that the cases use.
        """
        raise NotImplementedError(f"{type(self).__name__} has no make(namespace)")

    def make_bounded(
        self, namespace: str, capacity: int
    ) -> MessageQueueBackendProtocol | Awaitable[MessageQueueBackendProtocol]:
        """Return a backend whose broker soon refuses more than ``capacity`` retained messages."""
        raise NotImplementedError

    def make_short_lease(
        self, namespace: str, seconds: float
    ) -> MessageQueueBackendProtocol | Awaitable[MessageQueueBackendProtocol]:
        """Return a backend with a lease of ``seconds``, or the shortest the broker can do."""
        raise NotImplementedError

    def make_unreachable(
        self, namespace: str
    ) -> MessageQueueBackendProtocol | Awaitable[MessageQueueBackendProtocol]:
        """Return a backend whose broker does not answer, with a time-out well below `patience`."""
        raise NotImplementedError

    def make_without_groups(
        self, namespace: str
    ) -> MessageQueueBackendProtocol | Awaitable[MessageQueueBackendProtocol]:
        """Return a backend for which no group is configured, if groups are to be configured."""
        raise NotImplementedError

    def advance_time(self, seconds: float) -> Awaitable[None] | None:
        """Let ``seconds`` pass for the leases and delays of every backend made, at once."""
        raise NotImplementedError

    def restart_broker(self) -> Awaitable[None] | None:
        """Stop the broker and start it again; returns once it can be reached."""
        raise NotImplementedError

    def cut_connections(self) -> Awaitable[None] | None:
        """Break every open connection to the broker, which goes on running."""
        raise NotImplementedError

    def kill_consumer(
        self, namespace: str, group: ConsumerGroup, count: int
    ) -> Awaitable[None] | None:
        """Have a process take ``count`` messages of ``group`` and die of SIGKILL with them.

        See `abe.testing.process.kill_consumer`.
        """
        raise NotImplementedError

    def kill_publisher(self, namespace: str, key: str) -> Awaitable[int] | int:
        """Have a process publish ``{"n": 0}``, ``{"n": 1}`` … and die of SIGKILL meanwhile.

        See `abe.testing.process.kill_publisher`.

        Returns:
            For how many of them ``publish`` had returned.
        """
        raise NotImplementedError

    def lose_data(self) -> Awaitable[None] | None:
        """Have the broker, which goes on running, lose everything it holds, groups included."""
        raise NotImplementedError

    def close(self) -> None:
        """Clean up after the last case; called by whoever created the harness."""

    def has(self, hook: str) -> bool:
        """Whether cases that need ``hook`` can run."""
        if hook in self.unavailable:
            return False
        if hook == "reopen":
            return self.reopen
        return getattr(type(self), hook) is not getattr(Harness, hook)

    async def call(self, method: str, *args: Any) -> Any:
        """Call one of the methods above and await its result if it is awaitable."""
        result = getattr(self, method)(*args)
        return await result if inspect.isawaitable(result) else result
