"""Publishing many at once, and being refused."""

from __future__ import annotations

from typing import Any

from abe.errors import AbeError, InvalidKeyError, PayloadError, PublishError
from abe.testing.base import ContractBase
from abe.testing.case import case
from abe.testing.context import CaseContext
from abe.testing.expect import check, refused

__all__ = ["BulkCases"]

CAPACITY = 5


class BulkCases(ContractBase):
    """``publish_many``, and the errors of publishing."""

    @case("publish_many")
    async def test_publish_many_sends_all(self, context: CaseContext) -> None:
        """publish_many() publishes every item, whatever iterable they come in, and counts them."""
        sent = [{"n": n} for n in range(25)]
        pairs = ((f"key.{p['n'] % 3}", p) for p in sent[:20])
        first = await context.within(context.backend.publish_many(pairs), "publish_many(pairs)")
        check(first == 20, f"publish_many() of 20 pairs returned {first}")
        second = await context.within(
            context.backend.publish_many(sent[20:], key="key.0"), "publish_many(payloads, key=…)"
        )
        check(second == 5, f"publish_many() of 5 payloads returned {second}")
        none = await context.within(context.backend.publish_many([]), "publish_many([])")
        check(none == 0, f"publish_many() of nothing returned {none}")
        arrived = await context.collect(sent, what="what publish_many() has published")
        wrong = [m for m in arrived if m.key != (f"key.{m['n'] % 3}" if m["n"] < 20 else "key.0")]
        check(not wrong, f"arrived under another key than published: {wrong[:3]}")

    @case("publish_many")
    async def test_publish_many_checks_first(self, context: CaseContext) -> None:
        """A malformed item makes publish_many() raise, naming its position, and send nothing."""
        good = ("orders", {"n": 1})
        for what, bad, error in (
            ("a malformed payload", ("orders", {"n": {1}}), PayloadError),
            ("a malformed key", ("a b", {"n": 1}), InvalidKeyError),
            ("an item that is no pair", 7, PayloadError),
        ):
            with refused(f"publish_many() with {what} at position 2", error, naming="2"):
                await context.backend.publish_many([good, good, bad, good])
        sent = await context.send(1)
        await context.collect(sent, what="what was published apart from refused bulks")

    @case("publish_many", hooks=["make_bounded"])
    async def test_publish_many_reports_exactly(self, context: CaseContext) -> None:
        """If not all is accepted, PublishError tells exactly which items were and which not."""
        backend = await context.make("make_bounded", CAPACITY)
        items = [_bulky(n) for n in range(2 * CAPACITY)]
        error = None
        try:
            await context.within(backend.publish_many(items, key="orders"), "publish_many()")
        except PublishError as raised:
            error = raised
        check(error is not None, f"{len(items)} items were accepted by a broker for {CAPACITY}")
        assert error is not None
        accepted, failed = sorted(error.published), sorted(error.failed)
        check(
            sorted([*accepted, *failed]) == list(range(len(items))),
            f"PublishError must account for every item once; published={accepted} failed={failed}",
        )
        check(all(error.failed.values()), f"every failed item needs a reason: {error.failed}")
        expected = [items[n] for n in accepted]
        async with context.stream(backend=backend) as stream:
            await context.expect(stream, expected, what="what PublishError says was published")

    @case(hooks=["make_bounded"])
    async def test_refused_publish_raises(self, context: CaseContext) -> None:
        """A message that the broker refuses makes publish() raise PublishError, saying why."""
        backend = await context.make("make_bounded", CAPACITY)
        accepted = []
        error = None
        for n in range(20 * CAPACITY):
            try:
                await context.within(backend.publish("orders", _bulky(n)), "publish()")
            except PublishError as raised:
                error = raised
                break
            accepted.append(_bulky(n))
        check(error is not None, f"a broker for {CAPACITY} messages accepted {len(accepted)}")
        assert error is not None
        check(len(str(error)) > 10, f"PublishError should say why, but reads {str(error)!r}")
        check(isinstance(error.retryable, bool), "PublishError.retryable must be True or False")
        async with context.stream(backend=backend) as stream:
            await context.expect(stream, accepted, what="what publish() has accepted")

    @case(hooks=["make_unreachable"])
    async def test_unreachable_broker_raises(self, context: CaseContext) -> None:
        """While the broker cannot be reached publish() raises an AbeError, after its time-out."""
        backend = await context.make("make_unreachable")
        try:
            await context.within(backend.publish("orders", {"n": 0}), "publish() to raise")
        except (AbeError, ConnectionError) as error:
            check(isinstance(error, AbeError), f"publish() should raise an AbeError, not {error!r}")
            check(len(str(error)) > 10, f"the error should say what is wrong, not {str(error)!r}")
        else:
            raise AssertionError("publish() returned although the broker cannot be reached")


def _bulky(n: int) -> dict[str, Any]:
    """Return a payload that fills a broker which counts bytes."""
    return {"n": n, "filler": "x" * 1000}
