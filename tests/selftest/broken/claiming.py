"""Broken claims: too much, or too little."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from abe.backends.message_queue.base import Capabilities, MessageStream
from abe.types import ConsumerGroup
from tests.selftest.broken.registry import Disguised, broken
from tests.selftest.reference import FULL, ReferenceBackend
from tests.selftest.variants import Bare


class _Claims(ReferenceBackend):
    """Claims everything, and refuses in its methods what it has not got."""

    LACKS: ClassVar[str] = ""

    def need(self, capability: str, what: str) -> None:
        """Refuse."""
        claimed = self.capabilities
        if capability == self.LACKS:
            self.capabilities = replace(claimed, **{capability: False})  # type: ignore[arg-type]
        try:
            super().need(capability, what)
        finally:
            self.capabilities = claimed


@broken("peek_takes_nothing", "peek_selects", says="capabilities tested here: peek")
class ClaimsPeek(_Claims):
    """Declares peek and refuses it."""

    LACKS = "peek"


@broken("stats_add_up", "stats_tell_age", says="capabilities tested here: stats")
class ClaimsStats(_Claims):
    """Declares stats and refuses them."""

    LACKS = "stats"


@broken("groups_are_listed", "purge_selects", says="capabilities tested here: admin")
class ClaimsAdmin(_Claims):
    """Declares admin and refuses it."""

    LACKS = "admin"


@broken("dead_letters_tell_why", "replay_of_some", says="capabilities tested here: dead_letters")
class ClaimsDeadLetters(_Claims):
    """Declares dead letters and refuses to list them."""

    LACKS = "dead_letters"


@broken("filter_selects", "unmatched_stay_for_others", says="capabilities tested here: keys")
class ClaimsKeys(ReferenceBackend):
    """Declares key filters and ignores them."""

    def consume(self, *, keys: Any = None, **options: Any) -> MessageStream:
        """Yield every key."""
        return super().consume(**options)


@broken("each_group_sees_everything", says="capabilities tested here: groups")
class ClaimsGroups(ReferenceBackend):
    """Declares groups and knows only one."""

    def consume(self, *, group: ConsumerGroup = None, **options: Any) -> MessageStream:
        """Serve everybody from one group."""
        return super().consume(**options)


@broken("claims_are_consistent", says="'peek'")
class ClaimsPeekWithoutMethod(Bare):
    """Declares peek and has no such method."""

    CAPABILITIES: ClassVar[Capabilities] = Capabilities(peek=True)
    peek = None  # type: ignore[assignment]


@broken("claims_are_consistent", says="'release' without 'redelivery'")
class ClaimsReleaseWithoutRedelivery(Bare):
    """Declares release, but not that messages come back."""

    CAPABILITIES: ClassVar[Capabilities] = Capabilities(release=True)


@broken("claims_are_per_instance", says="capabilities changed")
class ClaimsAfterConnecting(ReferenceBackend):
    """Capabilities are known only once it is connected."""

    async def _send(self, items: Any) -> None:
        await super()._send(items)
        self.capabilities = replace(FULL, peek=False)


# -- offered, but not claimed --------------------------------------------------------------


@broken("headers_unclaimed", says="'headers'")
class OffersHeaders(Disguised):
    """Carries headers, which it does not declare."""

    HIDES: ClassVar[dict[str, Any]] = {"headers": False}


@broken("headers_unclaimed", says="more often than published")
class RefusesHeadersTooLate(ReferenceBackend):
    """Raises for headers once the message is sent."""

    CAPABILITIES: ClassVar[Capabilities] = replace(FULL, headers=False)

    async def publish(self, key: str, payload: Any, **extras: Any) -> None:
        """Send, then refuse."""
        if extras.get("headers"):
            await super().publish(key, payload)
        await super().publish(key, payload, **extras)


@broken("delay_unclaimed", says="'delay'")
class OffersDelay(Disguised):
    """Delays, which it does not declare."""

    HIDES: ClassVar[dict[str, Any]] = {"delay": 0.0}


@broken("keys_unclaimed", says="'keys'")
class OffersKeys(Disguised):
    """Filters, which it does not declare."""

    HIDES: ClassVar[dict[str, Any]] = {"keys": "none"}


@broken("groups_unclaimed", says="'groups'")
class OffersGroups(Disguised):
    """Has groups, which it does not declare."""

    HIDES: ClassVar[dict[str, Any]] = {"groups": False}


@broken("redelivery_unclaimed", says="'redelivery'")
class OffersRedelivery(Disguised):
    """Redelivers, which it does not declare."""

    HIDES: ClassVar[dict[str, Any]] = {"redelivery": "none"}


@broken("release_unclaimed", says="'release'")
class OffersRelease(Disguised):
    """Releases, which it does not declare."""

    HIDES: ClassVar[dict[str, Any]] = {"release": False}


@broken("reject_unclaimed", says="'reject'")
class OffersReject(Disguised):
    """Rejects, which it does not declare."""

    HIDES: ClassVar[dict[str, Any]] = {"reject": False}


@broken("peek_unclaimed", says="'peek'")
class OffersPeek(Disguised):
    """Shows what waits, which it does not declare."""

    HIDES: ClassVar[dict[str, Any]] = {"peek": False}


@broken("stats_unclaimed", says="'stats'")
class OffersStats(Disguised):
    """Counts, which it does not declare."""

    HIDES: ClassVar[dict[str, Any]] = {"stats": False}


@broken("dead_letters_unclaimed", says="'dead_letters'")
class OffersDeadLetters(Disguised):
    """Lists dead letters, which it does not declare."""

    HIDES: ClassVar[dict[str, Any]] = {"dead_letters": False}


@broken("admin_unclaimed", says="'admin'")
class OffersAdmin(Disguised):
    """Cleans up, which it does not declare."""

    HIDES: ClassVar[dict[str, Any]] = {"admin": False}
