"""What the oracle knows: messages, and what has become of each in each group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from abe.backends.message_queue.base import KeyFilter, Message, Outcome
from abe.types import ConsumerGroup

__all__ = ["THERE", "Copy", "Hand", "Reader", "Sent"]

THERE = "there"
"""Not settled; the other things that may have become of a message end it."""


@dataclass(eq=False)
class Sent:
    """A message that was given to ``publish``.

    Attributes:
        sure: Whether ``publish`` has returned; otherwise it may be stored or not.
        began: When it was called, in events.
        ended: When it began if it has returned: what began later is stored behind it.
        due: Before which moment it must not be delivered, in seconds.
    """

    key: str
    payload: Mapping[str, Any]
    headers: Mapping[str, str]
    due: float
    delayed: bool
    began: int
    ended: float = float("inf")
    sure: bool = False
    id: str | None = None

    def __str__(self) -> str:
        return f"message {self.payload['n']} of {self.key!r}"


@dataclass(eq=False)
class Reader:
    """A consumer, as the oracle knows it.

    Attributes:
        front: What it has put back, and must be given next.
    """

    name: str
    group: ConsumerGroup
    keys: KeyFilter
    front: Copy | None = None

    def __str__(self) -> str:
        return self.name


@dataclass(eq=False)
class Hand:
    """A message in a reader's hand.

    Attributes:
        doubt: Whether its lease may have lapsed, so that a settlement may come too late.
        counted: Whether its lapsed lease already counts as an attempt.
        superseded: Whether the group was given it again since.
        outcome: What was recorded for it.
        delay: With which it was nacked, in seconds.
    """

    copy: Copy
    reader: Reader
    message: Message
    doubt: bool = False
    counted: bool = False
    superseded: bool = False
    outcome: Outcome | None = None
    delay: float = 0.0

    @property
    def live(self) -> bool:
        """Whether nobody else may have it."""
        return self.outcome is None and not self.doubt


@dataclass(eq=False)
class Copy:
    """A message in a group.

    Attributes:
        due: Before which moment it must not come.
        latest: When its delay is over at the latest.
        may: What may have become of it.
        low: How many earlier deliveries certainly count as attempts.
        high: How many may.
        hands: Those that are not known to have ended.
        seen: Whether a reader of the group has had it.
        blurred: Whether the order says nothing of it any more.
        stuck: Whether it may have to wait for a lease that nobody gives back.
        behind: Readers that may hand over deliveries whose leases have lapsed, and how many.
        reasons: With which it may have been rejected.
        replayed: Whether it was a dead letter, which later groups do not see.
    """

    sent: Sent
    group: ConsumerGroup
    due: float
    latest: float
    may: set[str] = field(default_factory=lambda: {THERE})
    low: int = 0
    high: int = 0
    hands: list[Hand] = field(default_factory=list)
    seen: bool = False
    blurred: bool = False
    stuck: bool = False
    behind: Counter[Reader] = field(default_factory=Counter)
    reasons: set[str] = field(default_factory=set)
    replayed: bool = False

    @property
    def required(self) -> bool:
        """Whether it must come, or come again."""
        return self.sent.sure and self.may == {THERE}

    def __str__(self) -> str:
        return f"{self.sent} in group {self.group!r}"
