"""Delays: lower bounds, as long as declared."""

from __future__ import annotations

import time

from abe.testing.base import ContractBase
from abe.testing.case import case
from abe.testing.expect import check, same
from abe.testing.trial import Trial

__all__ = ["DelayCases"]

CLOCK = 0.02
"""Seconds by which the broker's clock and ours may differ over a short delay."""


class DelayCases(ContractBase):
    """``delay`` and ``nack_delay``."""

    @case("delay")
    async def test_delay_is_a_lower_bound(self, trial: Trial) -> None:
        """A message published with a delay arrives after it, to a consumer that waits already."""
        delay = min(trial.harness.short_delay, trial.can.delay)
        async with trial.stream() as stream:
            started = time.monotonic()
            await trial.publish({"n": 0}, delay=delay)
            message = await trial.next(stream, f"the message published with delay={delay:g}")
            waited = time.monotonic() - started
            check(
                waited >= delay - CLOCK,
                f"the message arrived after {waited:.3f} s, before its delay of {delay:g} s",
            )
            if trial.can.attempts == "exact":
                check(message.attempt == 1, f"its attempt is {message.attempt}")

    @case("delay")
    async def test_delay_holds_up_no_other_key(self, trial: Trial) -> None:
        """A message that waits for its delay does not hold up messages of other keys."""
        await trial.publish({"n": 0}, "late", delay=min(60.0, trial.can.delay))
        sent = await trial.send(3, "soon", start=1)
        await trial.collect(sent, what="messages of another key, while one waits for its delay")

    @case("delay", hooks=["advance_time"])
    async def test_longest_delay(self, trial: Trial) -> None:
        """The longest declared delay is kept: nothing before, the message after."""
        delay = trial.can.delay
        await trial.publish({"n": 0}, delay=delay)
        async with trial.stream() as stream:
            await trial.hook("advance_time", delay * 0.9)
            await trial.nothing(stream, f"only 90 % of {delay:g} s have passed")
            await trial.hook("advance_time", delay * 0.1 + 1)
            same(await trial.next(stream, "the message, after its delay"), {"n": 0}, "payload")

    @case("nack_delay", "redelivery")
    async def test_nack_delay_is_a_lower_bound(self, trial: Trial) -> None:
        """A message nacked with a delay comes back after it."""
        delay = min(trial.harness.short_delay, trial.can.nack_delay)
        (sent,) = await trial.send(1)
        async with trial.stream() as stream:
            message = await trial.next(stream)
            started = time.monotonic()
            await message.nack(delay=delay)
            again = await trial.next(stream, f"the message nacked with delay={delay:g}")
            waited = time.monotonic() - started
            check(
                waited >= delay - CLOCK,
                f"the message came back after {waited:.3f} s, before its delay of {delay:g} s",
            )
            same(again, sent, "the redelivery")

    @case("nack_delay", "redelivery", hooks=["advance_time"])
    async def test_longest_nack_delay(self, trial: Trial) -> None:
        """The longest declared nack delay is kept: nothing before, the message after."""
        delay = trial.can.nack_delay
        await trial.send(1)
        async with trial.stream() as stream:
            await (await trial.next(stream)).nack(delay=delay)
            await trial.flush(stream)
            await trial.hook("advance_time", delay * 0.9)
            await trial.nothing(stream, f"only 90 % of {delay:g} s have passed")
            await trial.hook("advance_time", delay * 0.1 + 1)
            same(await trial.next(stream, "the message, after its delay"), {"n": 0}, "payload")
