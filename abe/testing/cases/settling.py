"""Settlement: what is acked is gone, and everything else comes back."""

from __future__ import annotations

from abe.testing.base import ContractBase
from abe.testing.case import case
from abe.testing.expect import check, same
from abe.testing.trial import Trial

__all__ = ["SettlingCases"]


class SettlingCases(ContractBase):
    """Ack, nack, release, reject, and what happens without any of them."""

    @case("redelivery")
    async def test_resume_acks(self, trial: Trial) -> None:
        """Asking for the next message acks the one before, which is never delivered again."""
        sent = await trial.send(3)
        async with trial.stream() as stream:
            for _ in range(3):
                await trial.next(stream)
            await trial.leave(stream)
        await trial.collect(sent[2:], what="the one message that was not resumed over")

    @case("redelivery")
    async def test_nack_redelivers(self, trial: Trial) -> None:
        """A nacked message is delivered again, equal to what was published."""
        (sent,) = await trial.send(1)
        async with trial.stream() as stream:
            message = await trial.next(stream)
            check(await message.nack(), "nack() of an unsettled message should return True")
            again = await trial.next(stream, "the nacked message to come again")
            same(again, sent, "payload of the redelivery")
