"""Counting deliveries, and giving messages back uncounted."""

from __future__ import annotations

from abe.testing.base import ContractBase
from abe.testing.case import case
from abe.testing.context import CaseContext
from abe.testing.expect import check

__all__ = ["AttemptCases"]


class AttemptCases(ContractBase):
    """``message.attempt`` is what the capability ``attempts`` says."""

    @case("attempts=exact", "redelivery")
    async def test_attempts_are_exact(self, context: CaseContext) -> None:
        """The attempt is 1 at first and grows by one with every failure, to any consumer."""
        await context.send(1)
        for expected in (1, 2, 3, 4):
            async with context.stream() as stream:
                message = await context.next(stream, f"attempt {expected}")
                check(
                    message.attempt == expected,
                    f"attempt is {message.attempt} after {expected - 1} failures, not {expected}",
                )
                await message.nack()

    @case("attempts=upper", "redelivery")
    async def test_attempts_are_an_upper_bound(self, context: CaseContext) -> None:
        """The attempt is 1 at first and never lower than the number of failures plus one."""
        await context.send(1)
        seen = []
        async with context.stream() as stream:
            for failures in range(4):
                message = await context.next(stream, f"the message after {failures} failures")
                seen.append(message.attempt)
                await message.nack()
        check(seen[0] == 1, f"the first attempt is {seen[0]}, not 1")
        check(
            all(attempt > failures for failures, attempt in enumerate(seen)),
            f"attempts {seen} of a message that failed each time: one is too low",
        )

    @case("attempts=none", "declared", "redelivery")
    async def test_attempts_unclaimed_are_one(self, context: CaseContext) -> None:
        """Without the capability attempts the attempt is always 1."""
        await context.send(1)
        async with context.stream() as stream:
            for failures in range(3):
                message = await context.next(stream, f"the message after {failures} failures")
                check(
                    message.attempt == 1,
                    "the backend does not declare the capability 'attempts', but tells attempt "
                    f"{message.attempt} after {failures} failures",
                )
                await message.nack()

    @case("attempts=exact", "release")
    async def test_release_is_not_counted(self, context: CaseContext) -> None:
        """Releasing a message does not count as an attempt."""
        await context.send(1)
        async with context.stream() as stream:
            for released in range(4):
                message = await context.next(stream, f"the message, released {released} times")
                check(
                    message.attempt == 1,
                    f"attempt is {message.attempt} although nothing failed; releases: {released}",
                )
                await message.release()

    @case("attempts=exact", "release")
    async def test_leaving_is_not_counted(self, context: CaseContext) -> None:
        """Leaving the loop with a message in hand does not count as an attempt."""
        await context.send(1)
        for times in range(3):
            async with context.stream() as stream:
                message = await context.next(stream, f"the message, left {times} times")
                check(
                    message.attempt == 1,
                    f"attempt is {message.attempt} although nothing failed; breaks: {times}",
                )

    @case("attempts=exact", "groups", "redelivery")
    async def test_attempts_are_per_group(self, context: CaseContext) -> None:
        """Failures in one group are not counted in another."""
        async with context.stream("a") as first, context.stream("b") as second:
            await context.send(1)
            for _ in range(2):
                await (await context.next(first, "the message, in group a")).nack()
            message = await context.next(second, "the message, in group b")
            check(
                message.attempt == 1,
                f"attempt is {message.attempt} in group b, where nothing failed",
            )
