"""What a message says about itself."""

from __future__ import annotations

import copy
import json
import pickle
from datetime import UTC, datetime, timedelta

from abe.backends.message_queue.base import MessageStream
from abe.errors import UnsupportedError
from abe.testing.base import ContractBase
from abe.testing.case import case
from abe.testing.context import CaseContext
from abe.testing.expect import check, exactly, refused, same

__all__ = ["MetadataCases"]

CLOCKS = timedelta(seconds=60)
"""How far the broker's clock may be from ours."""


class MetadataCases(ContractBase):
    """``id``, ``key``, ``timestamp``, ``attempt``; equality and copies."""

    @case("declared")
    async def test_metadata_is_complete(self, context: CaseContext) -> None:
        """A message has an id of its own, its key, when it was published (UTC), attempt 1."""
        before = datetime.now(UTC)
        for n, key in enumerate(("a", "b.c", "a")):
            await context.publish({"n": n}, key)
        async with context.stream() as stream:
            messages = [await context.next(stream) for _ in range(3)]
        keys = sorted(str(message.key) for message in messages)
        check(keys == ["a", "a", "b.c"], f"keys are {keys}")
        ids = [message.id for message in messages]
        check(all(isinstance(i, str) and i for i in ids), f"ids must be non-empty str, not {ids}")
        check(len({*ids}) == 3, f"three messages must have three ids, not {ids}")
        for message in messages:
            when = message.timestamp
            check(
                when is not None and when.utcoffset() == timedelta(0),
                f"timestamp must be an aware datetime in UTC, not {when!r}",
            )
            assert when is not None
            now = datetime.now(UTC)
            check(
                before - CLOCKS <= when <= now + CLOCKS,
                f"timestamp is {when}, but it was published between {before} and {now}",
            )
            check(message.attempt == 1, f"attempt is {message.attempt} on the first delivery")
            check(not dict(message.headers), f"headers are {message.headers}, but none were given")

    @case("declared", "redelivery")
    async def test_id_survives_redelivery(self, context: CaseContext) -> None:
        """A redelivered message has the id, key and timestamp of its first delivery."""
        await context.send(1, "orders.eu")
        async with context.stream() as stream:
            first = await context.next(stream)
            await first.nack()
            again = await context.next(stream, "the redelivery")
        for name in ("id", "key", "timestamp"):
            one, two = getattr(first, name), getattr(again, name)
            check(one == two, f"{name} was {one!r} and is {two!r} after redelivery")

    @case("groups")
    async def test_id_is_the_same_in_every_group(self, context: CaseContext) -> None:
        """Every group receives a message with the same id, key and timestamp."""
        async with context.stream("a") as first, context.stream("b") as second:
            await context.send(1, "orders.eu")
            one, two = await context.next(first), await context.next(second)
        for name in ("id", "key", "timestamp"):
            seen = [getattr(one, name), getattr(two, name)]
            check(seen[0] == seen[1], f"{name} differs between groups: {seen}")

    @case("declared")
    async def test_message_is_its_payload(self, context: CaseContext) -> None:
        """Equality and JSON see the payload only; metadata are attributes, never keys."""
        payload = {"id": "own", "key": 1, "n": [1, {"a": None}]}
        await context.publish(payload)
        async with context.stream() as stream:
            check(isinstance(stream, MessageStream), "consume() must return a MessageStream")
            message = await context.next(stream)
            same(message, payload, "payload")
            check(message == payload, f"{message!r} != {payload!r}")
            text = json.dumps(message, sort_keys=True)
            check(text == json.dumps(payload, sort_keys=True), f"as JSON it is {text}")
            check(message.id != "own", "message.id is the payload's value of 'id'")

    @case("declared")
    async def test_copies_keep_metadata(self, context: CaseContext) -> None:
        """Pickling and copying a message keep payload and metadata but not the right to settle."""
        await context.send(1, "orders.eu")
        async with context.stream() as stream:
            message = await context.next(stream)
            for how, twin in (
                ("pickling", pickle.loads(pickle.dumps(message))),  # noqa: S301 - our own
                ("copy.copy()", copy.copy(message)),
            ):
                same(twin, dict(message), f"payload after {how}")
                for name in ("id", "key", "timestamp", "attempt", "headers"):
                    one, two = getattr(message, name), getattr(twin, name)
                    check(one == two, f"{name} was {one!r} and is {two!r} after {how}")
                with refused(f"ack() after {how}", UnsupportedError):
                    await twin.ack()
            check(await message.ack(), "the original can still be acked")

    @case("groups")
    async def test_received_payload_is_private(self, context: CaseContext) -> None:
        """Changing a received payload changes nothing of what others receive."""
        payload = {"n": 1, "list": [1]}
        async with context.stream("a") as first, context.stream("b") as second:
            await context.publish(payload)
            message = await context.next(first)
            message["n"] = 2
            message["list"].append(2)
            other = await context.next(second)
            exactly([other], [{"n": 1, "list": [1]}], "what group b received")
