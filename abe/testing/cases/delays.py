"""Delays: lower bounds, as long as declared."""

from __future__ import annotations

import time

from abe.testing.base import ContractBase
from abe.testing.case import case
from abe.testing.context import CaseContext
from abe.testing.expect import check, same

__all__ = ["DelayCases"]

CLOCK = 0.02
"""Seconds by which the broker's clock and ours may differ over a short delay."""


class DelayCases(ContractBase):
    """``delay`` and ``nack_delay``."""

    @case("delay")
    async def test_delay_is_a_lower_bound(self, context: CaseContext) -> None:
        """A message published with a delay arrives after it, to a consumer that waits already."""
        delay = min(context.harness.short_delay, context.can.delay)
        async with context.stream() as stream:
            started = time.monotonic()
            await context.publish({"n": 0}, delay=delay)
            message = await context.next(stream, f"the message published with delay={delay:g}")
            waited = time.monotonic() - started
            check(
                waited >= delay - CLOCK,
                f"the message arrived after {waited:.3f} s, before its delay of {delay:g} s",
            )
            if context.can.attempts == "exact":
                check(message.attempt == 1, f"its attempt is {message.attempt}")

    @case("delay")
    async def test_delay_holds_up_no_other_key(self, context: CaseContext) -> None:
        """A message that waits for its delay does not hold up messages of other keys."""
        await context.publish({"n": 0}, "late", delay=min(60.0, context.can.delay))
        sent = await context.send(3, "soon", start=1)
        await context.collect(sent, what="messages of another key, while one waits for its delay")

    @case("delay", hooks=["advance_time"])
    async def test_longest_delay(self, context: CaseContext) -> None:
        """The longest declared delay is kept: nothing before, the message after."""
        delay = context.can.delay
        await context.publish({"n": 0}, delay=delay)
        async with context.stream() as stream:
            await context.hook("advance_time", delay * 0.9)
            await context.nothing(stream, f"only 90 % of {delay:g} s have passed")
            await context.hook("advance_time", delay * 0.1 + 1)
            same(await context.next(stream, "the message, after its delay"), {"n": 0}, "payload")

    @case("nack_delay", "redelivery")
    async def test_nack_delay_is_a_lower_bound(self, context: CaseContext) -> None:
        """A message nacked with a delay comes back after it."""
        delay = min(context.harness.short_delay, context.can.nack_delay)
        (sent,) = await context.send(1)
        async with context.stream() as stream:
            message = await context.next(stream)
            started = time.monotonic()
            await message.nack(delay=delay)
            again = await context.next(stream, f"the message nacked with delay={delay:g}")
            waited = time.monotonic() - started
            check(
                waited >= delay - CLOCK,
                f"the message came back after {waited:.3f} s, before its delay of {delay:g} s",
            )
            same(again, sent, "the redelivery")

    @case("nack_delay", "redelivery", hooks=["advance_time"])
    async def test_longest_nack_delay(self, context: CaseContext) -> None:
        """The longest declared nack delay is kept: nothing before, the message after."""
        delay = context.can.nack_delay
        await context.send(1)
        async with context.stream() as stream:
            await (await context.next(stream)).nack(delay=delay)
            await context.flush(stream)
            await context.hook("advance_time", delay * 0.9)
            await context.nothing(stream, f"only 90 % of {delay:g} s have passed")
            await context.hook("advance_time", delay * 0.1 + 1)
            same(await context.next(stream, "the message, after its delay"), {"n": 0}, "payload")
