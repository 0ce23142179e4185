"""Key filters, as declared."""

from __future__ import annotations

from abe.errors import ConfigurationError, InvalidKeyError
from abe.testing.base import ContractBase
from abe.testing.case import case
from abe.testing.context import CaseContext
from abe.testing.expect import exactly, refused

__all__ = ["KeyCases"]

KEYS = (
    "orders",
    "orders.eu",
    "orders.us",
    "orders.eu.created",
    "Orders.eu",
    "orders-eu",
    "order.eu.x.y",
)
FILTERS: dict[str, tuple[str, ...]] = {
    "orders": ("orders",),
    "orders.eu": ("orders.eu",),
    "orders.*": ("orders.eu", "orders.us"),
    "orders.**": ("orders.eu", "orders.us", "orders.eu.created"),
    "*.eu": ("orders.eu", "Orders.eu"),
    "*.eu.**": ("orders.eu.created", "order.eu.x.y"),
    "**": KEYS,
}
MALFORMED = ("", "orders.", "a..b", "orders.*x", "**.eu", "a b", "orders.#", "orders.>")


class KeyCases(ContractBase):
    """``keys``."""

    @case("keys", "groups", limit=8.0)
    async def test_filter_selects(self, context: CaseContext) -> None:
        """A filter yields the keys it matches and no others: * is one segment, final ** more."""
        streams = {p: context.open(f"g{n}", keys=[p]) for n, p in enumerate(FILTERS)}
        for pattern, stream in streams.items():
            await context.within(stream.__aenter__(), f"opening a stream with keys=[{pattern!r}]")
        for key in KEYS:
            await context.publish({"key": key}, key)
        for pattern, stream in streams.items():
            expected = [{"key": key} for key in FILTERS[pattern]]
            await context.expect(stream, expected, what=f"keys=[{pattern!r}]")

    @case("keys", "groups")
    async def test_several_patterns(self, context: CaseContext) -> None:
        """Several patterns yield what any of them matches, each message once."""
        async with context.stream("g", keys=["orders.eu", "orders.*", "Orders.*"]) as stream:
            for key in KEYS:
                await context.publish({"key": key}, key)
            expected = [{"key": key} for key in ("orders.eu", "orders.us", "Orders.eu")]
            await context.expect(stream, expected, what="three overlapping patterns")

    @case("keys=consumer")
    async def test_unmatched_stay_for_others(self, context: CaseContext) -> None:
        """Messages that a consumer's filter leaves out stay for the group's other consumers."""
        async with context.stream(keys=["a.*"]) as narrow:
            for n in range(6):
                await context.publish({"n": n}, "a.x" if n % 2 else "b.x")
            await context.expect(narrow, [{"n": n} for n in (1, 3, 5)], what="keys=['a.*']")
        await context.collect([{"n": n} for n in (0, 2, 4)], what="what keys=['a.*'] left out")

    @case("keys=consumer")
    async def test_filtered_consumers_work_side_by_side(self, context: CaseContext) -> None:
        """Consumers of one group with different filters each receive theirs at the same time."""
        async with context.stream(keys=["a"]) as first, context.stream(keys=["b"]) as second:
            for n in range(6):
                await context.publish({"n": n}, "b" if n % 2 else "a")
            theirs = [await context.next(second, "messages of key b") for _ in range(3)]
            own = [await context.next(first, "messages of key a") for _ in range(3)]
            exactly(theirs, [{"n": n} for n in (1, 3, 5)], "keys=['b']")
            exactly(own, [{"n": n} for n in (0, 2, 4)], "keys=['a']")

    @case("keys=consumer", "redelivery")
    async def test_failed_returns_to_its_filter(self, context: CaseContext) -> None:
        """A failed message comes back to a consumer whose filter matches, and to no other."""
        async with context.stream(keys=["a"]) as first, context.stream(keys=["b"]) as second:
            await context.publish({"n": 0}, "a")
            await (await context.next(first)).nack()
            await context.flush(first)
            await context.nothing(second, "its filter does not match the failed message")
            await context.expect(first, [{"n": 0}], what="the failed message, at its consumer")

    @case("keys=group")
    async def test_group_has_one_filter(self, context: CaseContext) -> None:
        """A consumer whose filter differs from its group's raises ConfigurationError."""
        async with context.stream("g", keys=["a.*"]):
            with refused(
                "a second filter in one group, with capability keys='group',", ConfigurationError
            ):
                stream = context.open("g", keys=["b.*"])
                await context.within(stream.__aenter__(), "opening a stream with another filter")

    @case("keys")
    async def test_malformed_filters_are_refused(self, context: CaseContext) -> None:
        """A malformed filter raises InvalidKeyError, and so does an empty list."""
        for pattern in MALFORMED:
            with refused(f"consume(keys=[{pattern!r}])", InvalidKeyError):
                context.backend.consume(keys=[pattern])
        with refused("consume(keys=[])", InvalidKeyError):
            context.backend.consume(keys=[])
