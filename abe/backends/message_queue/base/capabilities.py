"""What a backend declares that it can do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from abe.backends.message_queue.base.outcome import Outcome
from abe.errors import ConfigurationError, UnsupportedError

__all__ = [
    "COMPLETE",
    "Capabilities",
    "capabilities_of",
    "check_method",
    "check_settlement",
    "unsupported",
]


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a backend can do beyond the required three methods; the default claims nothing.

    ``backend.capabilities`` on the *instance* is authoritative, because queue types and server
    versions differ. The contract suite fails a backend that claims too much and one that offers
    what it does not claim.

    Attributes:
        durable: Accepted messages survive the process and a restart of the broker.
        groups: Several consumer groups, each of which sees every message.
        backlog: A new group sees the messages that are still retained.
        keys: Who may filter by key: each ``"consumer"`` (unmatched messages stay for the group's
            other consumers), a ``"group"`` (all its consumers give the same filter), ``"none"``.
        ordering: Of first deliveries: ``"key"`` (the next message of a key is not handed out while
            an earlier one is unsettled or delayed), ``"consumer"`` (publish order to a single
            consumer), ``"none"``.
        redelivery: Whether an unsettled or failed message comes back: each ``"message"`` by
            itself, the ``"log"`` from there on, ``"none"``.
        release: A message can be given back at once without counting as an attempt.
        reject: A message can be sent to the dead letters.
        attempts: ``message.attempt`` is ``"exact"``, an ``"upper"`` bound (releases count too), or
            always 1 (``"none"``).
        lease: Seconds the broker waits for a settlement before it redelivers (SQS' visibility
            timeout, the idle time of Redis Streams); ``None`` = forever.
        delay: Longest ``publish(delay=…)`` in seconds, 0 = none. Delays are lower bounds.
        nack_delay: Longest ``nack(delay=…)`` in seconds, 0 = none.
        headers: ``publish(headers=…)``.
        publish_many: Bulk publishing in few round trips.
        peek: Looking without taking.
        stats: Numbers.
        dead_letters: Dead letters can be listed and replayed.
        admin: Groups can be listed, deleted and purged.
    """

    durable: bool = False
    groups: bool = False
    backlog: bool = False
    keys: Literal["consumer", "group", "none"] = "none"
    ordering: Literal["key", "consumer", "none"] = "none"
    redelivery: Literal["message", "log", "none"] = "none"
    release: bool = False
    reject: bool = False
    attempts: Literal["exact", "upper", "none"] = "none"
    lease: float | None = None
    delay: float = 0.0
    nack_delay: float = 0.0
    headers: bool = False
    publish_many: bool = False
    peek: bool = False
    stats: bool = False
    dead_letters: bool = False
    admin: bool = False


_YEAR = 365 * 86_400.0

COMPLETE = Capabilities(
    groups=True,
    backlog=True,
    keys="consumer",
    ordering="consumer",
    redelivery="message",
    release=True,
    reject=True,
    attempts="exact",
    delay=_YEAR,
    nack_delay=_YEAR,
    headers=True,
    publish_many=True,
    peek=True,
    stats=True,
    dead_letters=True,
    admin=True,
)
"""What a backend declares that can do everything; ``lease`` and ``durable`` are its own."""


def capabilities_of(backend: object) -> Capabilities:
    """Return what ``backend`` declares; a plain backend declares nothing."""
    declared = getattr(backend, "capabilities", None)
    return declared if isinstance(declared, Capabilities) else Capabilities()


def unsupported(backend: str, what: str, capability: str) -> UnsupportedError:
    """Return the error for ``what`` on a backend that does not declare ``capability``."""
    return UnsupportedError(
        f"backend {backend!r} does not support {what} (capability {capability!r})"
    )


_NEEDED = {
    **dict.fromkeys(("replay", "dead_letters"), "dead_letters"),
    **dict.fromkeys(("groups", "delete_group", "purge"), "admin"),
}
"""Which capability declares a method, where it has another name."""


def check_method(can: Capabilities, backend: str, method: str) -> None:
    """Refuse a method that looks or cleans up and is not declared."""
    capability = _NEEDED.get(method, method)
    if not getattr(can, capability):
        raise unsupported(backend, f"{method}()", capability)


def check_settlement(can: Capabilities, backend: str, outcome: Outcome, delay: float) -> None:
    """Refuse a settlement that the backend does not declare, and a malformed delay."""
    if outcome is Outcome.NACK:
        if can.redelivery == "none":
            raise unsupported(backend, "nack()", "redelivery")
        if delay > can.nack_delay:
            what = f"nack(delay={delay:g}); the longest is {can.nack_delay:g} s"
            raise unsupported(backend, what, "nack_delay")
        if not delay >= 0:
            raise ConfigurationError(f"delay is {delay}; it must be 0 or more seconds")
    elif outcome is Outcome.RELEASE and not can.release:
        raise unsupported(backend, "release()", "release")
    elif outcome is Outcome.REJECT and not can.reject:
        raise unsupported(backend, "reject()", "reject")
