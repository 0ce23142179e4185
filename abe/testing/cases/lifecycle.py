"""Closing, reopening, losing the connection."""

from __future__ import annotations

import asyncio
from typing import Any

from abe.backends.message_queue.base import Message
from abe.errors import BackendClosedError, ConnectionLostError
from abe.testing.base import ContractBase
from abe.testing.case import case
from abe.testing.context import CaseContext
from abe.testing.expect import check, exactly, refused

__all__ = ["LifecycleCases"]


class LifecycleCases(ContractBase):
    """A backend's life, and its broker's."""

    # -- closing ---------------------------------------------------------------------------

    @case("declared")
    async def test_closing_twice_is_fine(self, context: CaseContext) -> None:
        """aclose() may be called again, at the same time, and on a backend never used."""
        await context.send(1)
        closing = asyncio.gather(context.backend.aclose(), context.backend.aclose())
        await context.within(closing, "two calls of aclose() at the same time")
        await context.within(context.backend.aclose(), "a third aclose()")
        if context.harness.reopen:
            unused = await context.another()
            await context.within(unused.aclose(), "aclose() of a backend that was never used")

    @case("declared")
    async def test_async_with_closes(self, context: CaseContext) -> None:
        """Entering ``async with`` gives the backend itself and closes it at the end."""
        async with context.backend as entered:
            check(entered is context.backend, f"async with gave {entered!r}")
            await context.send(1)
        with refused("publish() after async with", BackendClosedError):
            await context.backend.publish("orders", {"n": 1})

    @case("declared")
    async def test_closed_backend_refuses(self, context: CaseContext) -> None:
        """Every method of a closed backend raises BackendClosedError."""
        backend = context.backend
        await context.within(backend.aclose(), "aclose()")
        calls: dict[str, tuple[Any, ...]] = {"publish": ("orders", {"n": 0}), "ping": ()}
        if context.can.publish_many:
            calls["publish_many"] = ([("orders", {"n": 0})],)
        if context.can.peek:
            calls["peek"] = ()
        if context.can.stats:
            calls["stats"] = ()
        if context.can.dead_letters:
            calls |= {"dead_letters": (), "replay": ()}
        if context.can.admin:
            calls |= {"groups": (), "purge": (), "delete_group": ("a",)}
        for method, args in calls.items():
            with refused(f"{method}() of a closed backend", BackendClosedError):
                await context.within(getattr(backend, method)(*args), f"{method}() to raise")
        with refused("consume() of a closed backend", BackendClosedError):
            stream = context.open()
            await context.within(stream.__aenter__(), "opening a stream of a closed backend")

    @case("declared")
    async def test_closing_ends_streams(self, context: CaseContext) -> None:
        """Closing the backend ends the loops of its waiting consumers."""
        stream = context.open()
        waiting = asyncio.ensure_future(anext(stream, None))
        await asyncio.sleep(0)
        await context.within(context.backend.aclose(), "aclose() while a consumer waits")
        ended = await context.within(waiting, "the waiting consumer to end")
        check(ended is None, f"the waiting consumer got {ended!r} instead of the end")

    @case("release", hooks=["reopen"])
    async def test_closing_gives_back(self, context: CaseContext) -> None:
        """Closing the backend gives back what its consumers hold, and sends their acks."""
        sent = await context.spread(4)
        stream = context.open(prefetch=1)
        await (await context.next(stream)).ack()
        held = await context.next(stream)
        await context.within(context.backend.aclose(), "aclose() of the backend")
        other = await context.another()
        rest = await context.collect(sent[1:], backend=other, what="all but the acked")
        check(held.id in {m.id for m in rest}, "what was held did not come back")

    @case(hooks=["reopen"])
    async def test_closing_publisher_loses_nothing(self, context: CaseContext) -> None:
        """A publisher may be closed as soon as its publishes have returned: all of them arrive."""
        publisher = await context.another()
        sent = [{"n": n} for n in range(30)]
        publishing = [publisher.publish("orders", payload) for payload in sent]
        await context.within(asyncio.gather(*publishing), "30 publishes at the same time")
        if hasattr(publisher, "aclose"):
            await context.within(publisher.aclose(), "aclose() of the publisher")
        await context.collect(sent, what="what was published before the publisher was closed")

    @case("redelivery", hooks=["reopen"], limit=6.0)
    async def test_reopening_loses_nothing(self, context: CaseContext) -> None:
        """Over many closings and reopenings of the backend no message is lost or done twice."""
        sent = await context.spread(40)
        done: list[Message] = []
        while len(done) < len(sent):
            backend = await context.another()
            stream = context.open(backend=backend)
            for n in range(7):
                message = await context.next(stream, f"message {len(done) + 1} of {len(sent)}")
                if n < 6:
                    await message.ack()
                    done.append(message)
                if len(done) == len(sent):
                    break
            await context.within(backend.aclose(), "aclose() of the backend")
            await context.let_unsettled_return()
        exactly(done, sent, "what was done over several openings")

    @case()
    async def test_lively_use_leaves_nothing(self, context: CaseContext) -> None:
        """After use by several consumers no task, thread or socket is left once all is closed."""
        sent = await context.spread(20)
        streams = [context.open() for _ in range(3)]
        await context.share(streams, sent, "what three consumers received")

    # -- health ----------------------------------------------------------------------------

    @case("declared")
    async def test_ping_answers(self, context: CaseContext) -> None:
        """ping() returns while the broker answers, before and after other use."""
        for _ in range(2):
            await context.within(context.backend.ping(context.harness.patience), "ping()")
            await context.send(1)

    @case("declared", hooks=["make_unreachable"])
    async def test_ping_tells_unreachable(self, context: CaseContext) -> None:
        """ping() raises ConnectionLostError while the broker cannot be reached."""
        backend = await context.make("make_unreachable")
        with refused("ping() of an unreachable broker", ConnectionLostError):
            await context.within(backend.ping(context.harness.patience / 2), "ping() to raise")

    # -- losing the connection -------------------------------------------------------------

    @case("durable", hooks=["restart_broker"], limit=8.0)
    async def test_restart_keeps_messages(self, context: CaseContext) -> None:
        """What was published before the broker restarted arrives after it; what was acked not."""
        sent = await context.send(6)
        async with context.stream(prefetch=1) as stream:
            for _ in range(2):
                await (await context.next(stream)).ack()
            await context.flush(stream)
        await context.hook("restart_broker")
        await context.collect(sent[2:], what="what was published and not acked before the restart")

    @case("durable", hooks=["restart_broker"], limit=8.0)
    async def test_consumer_outlives_restart(self, context: CaseContext) -> None:
        """A waiting consumer goes on by itself after the broker has restarted, twice."""
        async with context.stream() as stream:
            for n in range(2):
                waiting = asyncio.ensure_future(anext(stream))
                await asyncio.sleep(0)
                await context.hook("restart_broker")
                await context.publish_until_accepted({"n": n})
                message = await context.within(
                    waiting, "a message after the restart", 3 * context.harness.patience
                )
                while message["n"] < n:  # a publish that was tried again may arrive twice
                    message = await context.next(stream, f"message {n} after the restart")
                check(message["n"] == n, f"{message!r} came instead of message {n}")

    @case("redelivery", hooks=["cut_connections"], limit=8.0)
    async def test_consumer_outlives_cut(self, context: CaseContext) -> None:
        """A consumer whose connection is cut goes on by itself, and no message is lost."""
        sent = [{"n": n} for n in range(12)]
        arrived: set[int] = set()
        async with context.stream() as stream:
            for payload in sent[:8]:
                await context.publish_until_accepted(payload)
            for _ in range(3):
                arrived.add((await context.next(stream))["n"])
            await context.hook("cut_connections")
            for payload in sent[8:]:
                await context.publish_until_accepted(payload)
            while len(arrived) < len(sent):
                missing = sorted(set(range(len(sent))) - arrived)
                what = f"messages {missing} after the cut"
                message = await context.next(stream, what, context.after_cut)
                arrived.add(message["n"])

    @case("redelivery", hooks=["cut_connections"], limit=8.0)
    async def test_unsettled_survives_cut(self, context: CaseContext) -> None:
        """A message in hand when the connection is cut is either settled or comes again."""
        await context.send(1)
        async with context.stream() as stream:
            held = await context.next(stream)
            await context.hook("cut_connections")
            await held.nack()
            what = "the message that was nacked after the cut"
            again = await context.next(stream, what, context.after_cut)
            check(again.id == held.id, f"{again!r} came instead of {held!r}")

    @case("declared", hooks=["cut_connections"])
    async def test_publisher_outlives_cut(self, context: CaseContext) -> None:
        """After a cut publish() works again, raising at most a few AbeErrors meanwhile."""
        await context.send(1)
        await context.hook("cut_connections")
        await context.publish_until_accepted({"n": 1})
        async with context.stream() as stream:
            arrived = {(await context.next(stream))["n"] for _ in range(2)}
        check(arrived == {0, 1}, f"messages {arrived} arrived, not 0 and 1")

    @case("groups", hooks=["lose_data"], limit=8.0)
    async def test_groups_outlive_lost_data(self, context: CaseContext) -> None:
        """When the broker has lost everything, what is published then reaches every open group."""
        async with context.stream("a") as first, context.stream("b") as second:
            await context.send(1)
            for stream in (first, second):
                await (await context.next(stream)).ack()
                await context.flush(stream)
            await context.hook("lose_data")
            sent = [{"n": n} for n in range(1, 4)]
            for payload in sent:
                await context.publish_until_accepted(payload, f"key.{payload['n']}")
            for group, stream in (("a", first), ("b", second)):
                came = await context.take(stream, 3, f"what was published after that, in {group}")
                exactly(came, sent, f"what group {group} received")
