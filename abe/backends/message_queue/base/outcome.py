"""How a delivery ends, and the two references that a settlement travels along."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Protocol

__all__ = ["OUTCOMES", "Outcome", "Settleable", "Settler"]


class Outcome(StrEnum):
    """How a delivery ends.

    ``ACK``, ``NACK`` and ``REJECT`` are AMQP's words; here a nacked message is always redelivered,
    and a rejected one never.
    """

    code: int
    """A number that stands for it where one byte must do."""

    ACK = "ack"
    NACK = "nack"
    RELEASE = "release"
    REJECT = "reject"
    LOST = "lost"
    """Not by us: the lease lapsed, or the connection the delivery came on is gone."""


OUTCOMES = tuple(Outcome)
for _code, _outcome in enumerate(OUTCOMES):
    _outcome.code = _code


class Settleable(Protocol):
    """A delivery, as its message knows it."""

    owned: bool
    subscription: Settler | None


class Settler(Protocol):
    """The subscription, as its deliveries know it."""

    def settle(self, delivery: Any, outcome: Outcome, delay: float = 0.0, reason: str = "") -> bool:
        """Record ``outcome``; False if ``delivery`` was settled differently before."""
