"""Claims: a backend offers what it declares, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from abe.backends.message_queue.base import Capabilities, MessageStream
from abe.errors import UnsupportedError
from abe.testing.base import ContractBase
from abe.testing.case import case
from abe.testing.context import CaseContext
from abe.testing.expect import check
from abe.testing.requirements import has

__all__ = ["ClaimCases"]

METHODS = {
    "publish_many": ("publish_many",),
    "peek": ("peek",),
    "stats": ("stats",),
    "dead_letters": ("dead_letters", "replay"),
    "admin": ("groups", "delete_group", "purge"),
}


class ClaimCases(ContractBase):
    """``capabilities``: neither too much nor too little."""

    @case("declared")
    async def test_claims_are_consistent(self, context: CaseContext) -> None:
        """What is declared has its methods, and implies what it cannot exist without."""
        backend, can = context.backend, context.can
        for capability, methods in METHODS.items():
            missing = [m for m in methods if not callable(getattr(backend, m, None))]
            check(
                not (getattr(can, capability) and missing),
                f"the backend declares the capability {capability!r}, but has no {missing}",
            )
        for capability, implied in (
            ("release", "redelivery"),
            ("nack_delay", "redelivery"),
            ("lease", "redelivery"),
            ("dead_letters", "reject"),
        ):
            check(
                not has(getattr(can, capability)) or has(getattr(can, implied)),
                f"the backend declares {capability!r} without {implied!r}",
            )
        check(isinstance(getattr(backend, "name", None), str), "the backend has no name")

    @case("declared")
    async def test_claims_are_per_instance(self, context: CaseContext) -> None:
        """Capabilities are there before the first connection and stay as they are."""
        before = context.can
        check(isinstance(before, Capabilities), f"capabilities is {before!r}")
        await context.send(1)
        async with context.stream() as stream:
            check(isinstance(stream, MessageStream), "consume() must return a MessageStream")
            await context.next(stream)
        after = context.backend.capabilities
        check(after == before, f"capabilities changed from {before} to {after}")

    # -- what is not claimed is refused, by name and before anything happens ----------------

    @case("!headers")
    async def test_headers_unclaimed(self, context: CaseContext) -> None:
        """Without the capability headers, publish(headers=…) raises and sends nothing."""
        await _refused_publish(context, "headers", headers={"a": "b"})

    @case("!delay")
    async def test_delay_unclaimed(self, context: CaseContext) -> None:
        """Without the capability delay, publish(delay=…) raises and sends nothing."""
        await _refused_publish(context, "delay", delay=1.0)

    @case("delay")
    async def test_delay_beyond_the_longest(self, context: CaseContext) -> None:
        """A delay longer than declared raises UnsupportedError and sends nothing."""
        await _refused_publish(context, "delay", delay=context.can.delay * 1.01 + 1)

    @case("!keys", "declared")
    async def test_keys_unclaimed(self, context: CaseContext) -> None:
        """Without the capability keys, consume(keys=…) raises UnsupportedError."""

        async def consume() -> None:
            stream = context.backend.consume(keys=["a"])
            await stream.__aenter__()
            await stream.aclose()

        await _refused(context, "keys", "consume(keys=…)", consume)

    @case("!groups")
    async def test_groups_unclaimed(self, context: CaseContext) -> None:
        """Without the capability groups, consume(group="a") raises UnsupportedError."""

        async def consume() -> None:
            stream = context.backend.consume(group="a")
            await stream.__aenter__()
            await stream.aclose()

        await _refused(context, "groups", "consume(group='a')", consume)

    @case("!redelivery")
    async def test_redelivery_unclaimed(self, context: CaseContext) -> None:
        """Without the capability redelivery, nack() raises UnsupportedError."""
        await _refused_settlement(context, "redelivery", "nack")

    @case("redelivery")
    async def test_nack_delay_beyond_the_longest(self, context: CaseContext) -> None:
        """A nack delay longer than declared raises UnsupportedError, and the message stays ours."""
        delay = context.can.nack_delay * 1.01 + 1
        await _refused_settlement(context, "nack_delay", "nack", delay)

    @case("!release")
    async def test_release_unclaimed(self, context: CaseContext) -> None:
        """Without the capability release, release() raises UnsupportedError."""
        await _refused_settlement(context, "release", "release")

    @case("!reject")
    async def test_reject_unclaimed(self, context: CaseContext) -> None:
        """Without the capability reject, reject() raises UnsupportedError."""
        await _refused_settlement(context, "reject", "reject")

    @case("!peek")
    async def test_peek_unclaimed(self, context: CaseContext) -> None:
        """Without the capability peek, peek() is missing or raises UnsupportedError."""
        await _refused_method(context, "peek", "peek")

    @case("!stats")
    async def test_stats_unclaimed(self, context: CaseContext) -> None:
        """Without the capability stats, stats() is missing or raises UnsupportedError."""
        await _refused_method(context, "stats", "stats")

    @case("!dead_letters")
    async def test_dead_letters_unclaimed(self, context: CaseContext) -> None:
        """Without the capability dead_letters, its methods are missing or raise."""
        await _refused_method(context, "dead_letters", "dead_letters")
        await _refused_method(context, "dead_letters", "replay")

    @case("!admin")
    async def test_admin_unclaimed(self, context: CaseContext) -> None:
        """Without the capability admin, its methods are missing or raise UnsupportedError."""
        await _refused_method(context, "admin", "groups")
        await _refused_method(context, "admin", "purge")
        await _refused_method(context, "admin", "delete_group", "a")


async def _refused(
    context: CaseContext, capability: str, what: str, call: Callable[[], Any]
) -> None:
    """Fail unless ``call`` raises UnsupportedError; the failure names the capability."""
    value = getattr(context.can, capability)
    declares = f"declares the capability {capability!r} as {value!r}"
    if not has(value):
        declares = f"does not declare the capability {capability!r}"
    try:
        await context.within(call(), f"{what} to raise")
    except UnsupportedError as error:
        check(
            capability in str(error),
            f"the error of {what} should name the capability {capability!r}: {str(error)!r}",
        )
    except Exception as error:
        raise AssertionError(
            f"the backend {declares}: {what} should raise UnsupportedError, not {error!r}"
        ) from error
    else:
        raise AssertionError(
            f"the backend {declares}, but offers it: {what} should raise UnsupportedError"
        )


async def _refused_publish(context: CaseContext, capability: str, **extras: Any) -> None:
    what = f"publish({', '.join(f'{name}={value!r}' for name, value in extras.items())})"
    await _refused(
        context, capability, what, lambda: context.backend.publish("orders", {"n": -1}, **extras)
    )
    sent = await context.send(1)
    await context.collect(sent, what=f"all but what {what} has refused")


async def _refused_settlement(
    context: CaseContext, capability: str, method: str, *args: float
) -> None:
    async with context.stream() as stream:
        await context.send(1)
        message = await context.next(stream)
        call = getattr(message, method)
        await _refused(context, capability, f"{method}()", lambda: call(*args))
        check(await message.ack(), f"a refused {method}() must leave the message unsettled")


async def _refused_method(context: CaseContext, capability: str, method: str, *args: str) -> None:
    call = getattr(context.backend, method, None)
    if call is not None:
        await _refused(context, capability, f"{method}()", lambda: call(*args))
