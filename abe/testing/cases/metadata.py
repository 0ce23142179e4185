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
from abe.testing.expect import check, exactly, refused, same
from abe.testing.trial import Trial

__all__ = ["MetadataCases"]

CLOCKS = timedelta(seconds=60)
"""How far the broker's clock may be from ours."""


class MetadataCases(ContractBase):
    """``id``, ``key``, ``timestamp``, ``attempt``; equality and copies."""

    @case("declared")
    async def test_metadata_is_complete(self, trial: Trial) -> None:
        """A message has an id of its own, its key, when it was published (UTC), attempt 1."""
        before = datetime.now(UTC)
        for n, key in enumerate(("a", "b.c", "a")):
            await trial.publish({"n": n}, key)
        async with trial.stream() as stream:
            messages = [await trial.next(stream) for _ in range(3)]
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
    async def test_id_survives_redelivery(self, trial: Trial) -> None:
        """A redelivered message has the id, key and timestamp of its first delivery."""
        await trial.send(1, "orders.eu")
        async with trial.stream() as stream:
            first = await trial.next(stream)
            await first.nack()
            again = await trial.next(stream, "the redelivery")
        for name in ("id", "key", "timestamp"):
            one, two = getattr(first, name), getattr(again, name)
            check(one == two, f"{name} was {one!r} and is {two!r} after redelivery")

    @case("groups")
    async def test_id_is_the_same_in_every_group(self, trial: Trial) -> None:
        """Every group receives a message with the same id, key and timestamp."""
        async with trial.stream("a") as first, trial.stream("b") as second:
            await trial.send(1, "orders.eu")
            one, two = await trial.next(first), await trial.next(second)
        for name in ("id", "key", "timestamp"):
            seen = [getattr(one, name), getattr(two, name)]
            check(seen[0] == seen[1], f"{name} differs between groups: {seen}")

    @case("declared")
    async def test_message_is_its_payload(self, trial: Trial) -> None:
        """Equality and JSON see the payload only; metadata are attributes, never keys."""
        payload = {"id": "own", "key": 1, "n": [1, {"a": None}]}
        await trial.publish(payload)
        async with trial.stream() as stream:
            check(isinstance(stream, MessageStream), "consume() must return a MessageStream")
            message = await trial.next(stream)
            same(message, payload, "payload")
            check(message == payload, f"{message!r} != {payload!r}")
            text = json.dumps(message, sort_keys=True)
            check(text == json.dumps(payload, sort_keys=True), f"as JSON it is {text}")
            check(message.id != "own", "message.id is the payload's value of 'id'")

    @case("declared")
    async def test_copies_keep_metadata(self, trial: Trial) -> None:
        """Pickling and copying a message keep payload and metadata but not the right to settle."""
        await trial.send(1, "orders.eu")
        async with trial.stream() as stream:
            message = await trial.next(stream)
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
    async def test_received_payload_is_private(self, trial: Trial) -> None:
        """Changing a received payload changes nothing of what others receive."""
        payload = {"n": 1, "list": [1]}
        async with trial.stream("a") as first, trial.stream("b") as second:
            await trial.publish(payload)
            message = await trial.next(first)
            message["n"] = 2
            message["list"].append(2)
            other = await trial.next(second)
            exactly([other], [{"n": 1, "list": [1]}], "what group b received")
