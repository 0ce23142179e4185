"""How a broken backend is registered, and what several of them are made with."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

from abe.backends.message_queue.base import Capabilities, Message, MessageStream
from abe.testing.harness import Harness
from abe.types import ConsumerGroup
from tests.selftest.reference import ReferenceBackend, ReferenceHarness

__all__ = ["BROKEN", "BrokenBackend", "Disguised", "Streamed", "broken"]

B = TypeVar("B", bound=type)


@dataclass(frozen=True, slots=True)
class BrokenBackend:
    """A deliberately faulty backend.

    Attributes:
        backend: Its class.
        fault: What is wrong with it.
        caught_by: Ids of the cases that must fail it; the first is the one made for it.
        says: What the failure of the first must contain.
        harness: The harness, if it takes another one.
    """

    backend: type
    fault: str
    caught_by: tuple[str, ...]
    says: str
    harness: Callable[[type, float], Harness] | None

    @property
    def name(self) -> str:
        """Name of its class."""
        return self.backend.__name__

    def make_harness(self, patience: float) -> Harness:
        """Return a harness that gives up on it soon."""
        if self.harness is not None:
            return self.harness(self.backend, patience)
        return ReferenceHarness(self.backend, patience)


BROKEN: list[BrokenBackend] = []


def broken(
    *caught_by: str, says: str = "", harness: Callable[[type, float], Harness] | None = None
) -> Callable[[B], B]:
    """Register a broken backend; its docstring tells the fault.

    Args:
        caught_by: Ids of the cases that must fail it; the first is the one made for it.
        says: What the failure of the first must contain.
        harness: Makes another harness from the class and a patience.
    """

    def register(backend: B) -> B:
        fault = inspect.cleandoc(backend.__doc__ or "")
        assert caught_by, backend
        assert fault, backend
        BROKEN.append(BrokenBackend(backend, fault, caught_by, says, harness))
        return backend

    return register


class Streamed(ReferenceBackend):
    """A backend whose streams or messages are of another class."""

    STREAM: ClassVar[type[MessageStream]] = MessageStream
    MESSAGE: ClassVar[type[Message]] = Message

    def consume(
        self,
        *,
        group: ConsumerGroup = None,
        keys: Sequence[str] | str | None = None,
        prefetch: int | None = None,
    ) -> MessageStream:
        """Return a stream of that class."""
        stream = super().consume(group=group, keys=keys, prefetch=prefetch)
        if self.STREAM is not MessageStream:
            object.__setattr__(stream, "__class__", self.STREAM)
        return stream


class Disguised(ReferenceBackend):
    """A backend that claims less than it does: within its own methods it claims everything."""

    HIDES: ClassVar[dict[str, Any]] = {}

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.everything: Capabilities = self.capabilities
        self.capabilities = replace(self.everything, **self.HIDES)

    @contextmanager
    def unmasked(self) -> Iterator[None]:
        """Claim everything for a moment."""
        claimed, self.capabilities = self.capabilities, self.everything
        try:
            yield
        finally:
            self.capabilities = claimed

    def _check(self, *args: Any) -> Any:
        with self.unmasked():
            return super()._check(*args)

    def consume(self, **options: Any) -> MessageStream:
        """Return a stream that can do everything."""
        with self.unmasked():
            return super().consume(**options)

    def need(self, capability: str, what: str) -> None:
        """Allow everything."""
        with self.unmasked():
            super().need(capability, what)
