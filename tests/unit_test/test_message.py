"""A message is its payload to everything that looks at a dict; metadata are attributes."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import threading
from collections.abc import Awaitable, Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from abe.backends.message_queue.base import (
    BaseMessage,
    Capabilities,
    Message,
    MessageStream,
    Outcome,
    SyncMessage,
    capabilities_of,
)
from abe.backends.message_queue.base.capabilities import unsupported
from abe.backends.message_queue.service.memory import MemoryBackend
from abe.errors import UnsupportedError

WHEN = datetime(2024, 5, 1, 12, 30, tzinfo=UTC)
PAYLOAD = {"type": "order", "items": [1, 2], "id": "in the payload"}


def example(kind: type[Message] | type[SyncMessage] = Message) -> Message | SyncMessage:
    message = Message(PAYLOAD, "m-1", "orders.eu", WHEN, 3, {"trace": "t"})
    return message if kind is Message else SyncMessage(message)


def outcome_of(message: BaseMessage) -> Outcome | None:
    """Return the outcome; a call, since type checkers take attributes for constant."""
    return message.outcome


both = pytest.mark.parametrize("kind", [Message, SyncMessage])


@both
def test_it_is_the_payload(kind: type[Message]) -> None:
    message = example(kind)
    assert isinstance(message, dict)
    assert message == PAYLOAD
    assert (PAYLOAD == message) is True  # noqa: SIM300 - asks the other operand
    assert message == Message(PAYLOAD, "another id")
    assert json.loads(json.dumps(message)) == PAYLOAD
    assert list(message) == list(PAYLOAD)
    assert {**message} == dict(message) == message.copy() == PAYLOAD
    assert type(message.copy()) is dict
    assert type(message | {}) is dict


@both
def test_match_sees_the_payload_only(kind: type[Message]) -> None:
    match example(kind):
        case {"key": _}:
            pytest.fail("metadata are no keys")
        case {"type": "order", "items": [first, *_]}:
            assert first == 1
        case _:
            pytest.fail("the payload does not match")


@both
def test_metadata_are_attributes(kind: type[Message]) -> None:
    message = example(kind)
    assert message.id == "m-1"
    assert message["id"] == "in the payload"
    assert message.key == "orders.eu"
    assert message.timestamp == WHEN
    assert message.attempt == 3
    assert message.headers == {"trace": "t"}
    assert message.outcome is None
    assert repr(message) == f"{kind.__name__}({PAYLOAD!r}, id='m-1', key='orders.eu', attempt=3)"


def test_a_plain_message_has_no_metadata() -> None:
    message = Message({"n": 1})
    assert (message.id, message.key, message.timestamp, message.attempt) == (None, None, None, 1)
    assert message.headers == {}
    with pytest.raises(TypeError):
        message.headers["a"] = "b"  # type: ignore[index]
    assert Message({}).headers == {}


def test_a_timestamp_in_seconds_is_given_as_aware_utc() -> None:
    message = Message({}, timestamp=WHEN.timestamp())
    assert message.timestamp == WHEN
    assert message.timestamp is message.timestamp
    assert message.timestamp is not None
    assert message.timestamp.utcoffset() == timedelta(0)


@both
@pytest.mark.parametrize(
    "duplicate",
    [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_copies_keep_the_metadata(
    kind: type[Message], duplicate: Callable[[BaseMessage], BaseMessage]
) -> None:
    message = example(kind)
    other = duplicate(message)
    assert type(other) is kind
    assert other == PAYLOAD
    assert (other.id, other.key, other.timestamp, other.attempt, dict(other.headers)) == (
        "m-1",
        "orders.eu",
        WHEN,
        3,
        {"trace": "t"},
    )
    assert other.outcome is None


def test_a_deep_copy_shares_nothing() -> None:
    message = example()
    copy.deepcopy(message)["items"].append(3)
    assert message["items"] == [1, 2]


def run(coroutine: Coroutine[Any, Any, bool]) -> bool:
    return asyncio.run(coroutine)


@pytest.mark.parametrize("method", ["ack", "nack", "release", "reject"])
def test_what_no_stream_handed_over_cannot_be_settled(method: str) -> None:
    message = Message(PAYLOAD)
    for candidate in (message, copy.copy(message), pickle.loads(pickle.dumps(message))):
        with pytest.raises(UnsupportedError, match=f"cannot {method} this message: only what"):
            run(getattr(candidate, method)())
    sync = SyncMessage(message)
    for blocking in (sync, copy.copy(sync), pickle.loads(pickle.dumps(sync))):
        with pytest.raises(UnsupportedError, match=f"cannot {method} this message: only what"):
            getattr(blocking, method)()
    message.detach()  # nobody owns it: nothing to do


async def first(backend: MemoryBackend) -> tuple[MessageStream, Message]:
    await backend.publish("k", {"n": 1})
    stream = backend.consume()
    return stream, await anext(stream)


METHODS: dict[str, Callable[[Message], Awaitable[bool]]] = {
    "ack": Message.ack,
    "nack": Message.nack,
    "release": Message.release,
    "reject": Message.reject,
}


@pytest.mark.parametrize("winner", METHODS)
def test_the_first_settlement_wins_and_settling_is_idempotent(winner: str) -> None:
    async def main() -> None:
        async with MemoryBackend(f"message.{winner}") as backend:
            stream, message = await first(backend)
            async with stream:
                assert outcome_of(message) is None
                for _ in range(3):
                    assert await METHODS[winner](message) is True
                    assert outcome_of(message) is Outcome(winner)
                    for other, method in METHODS.items():
                        assert await method(message) is (other == winner)

    asyncio.run(main())


def test_a_copy_of_a_received_message_cannot_settle_it() -> None:
    async def main() -> None:
        async with MemoryBackend("message.copy") as backend:
            stream, message = await first(backend)
            async with stream:
                for other in (copy.copy(message), pickle.loads(pickle.dumps(message))):
                    assert other.id == message.id
                    with pytest.raises(UnsupportedError):
                        await other.ack()
                assert message.outcome is None

    asyncio.run(main())


def test_after_the_stream_is_closed_settling_reports_that_it_came_too_late() -> None:
    async def main() -> None:
        async with MemoryBackend("message.late") as backend:
            stream, message = await first(backend)
            message.detach()
            await stream.aclose()
            assert await message.ack() is False
            assert message.outcome is Outcome.LOST

    asyncio.run(main())


def test_a_message_does_not_keep_its_stream_alive_once_settled() -> None:
    async def main() -> None:
        async with MemoryBackend("message.weak") as backend:
            stream, message = await first(backend)
            async with stream:
                assert message._delivery is not None
                await message.ack()
                assert message._delivery is None

    asyncio.run(main())


def test_a_sync_message_settles_from_any_thread_and_shows_the_outcome() -> None:
    async def main() -> None:
        async with MemoryBackend("message.sync") as backend:
            stream, message = await first(backend)
            async with stream:
                sync = SyncMessage(message)
                assert sync == message == {"n": 1}
                assert (sync.id, sync.key, sync.attempt) == (message.id, "k", 1)
                assert sync.timestamp == message.timestamp
                assert outcome_of(sync) is None
                assert await asyncio.to_thread(sync.reject, "broken") is True
                assert outcome_of(sync) is outcome_of(message) is Outcome.REJECT
                assert await asyncio.to_thread(sync.ack) is False
                assert await asyncio.to_thread(sync.nack, 1.0) is False
                assert await asyncio.to_thread(sync.release) is False
                assert await asyncio.to_thread(sync.reject) is True
                await stream.flush()
                (dead,) = await backend.dead_letters()
                assert dead.headers["abe-dead-reason"] == "broken"
                await backend.replay()
                again = SyncMessage(await anext(stream))
                assert await asyncio.to_thread(again.nack, 0.001) is True
                assert (await anext(stream)).attempt == 2

    asyncio.run(main())


def test_settling_a_copy_of_a_sync_message_fails_in_any_thread() -> None:
    errors: list[BaseException] = []
    copied = pickle.loads(pickle.dumps(SyncMessage(Message(PAYLOAD))))

    def settle() -> None:
        try:
            copied.ack()
        except UnsupportedError as error:
            errors.append(error)

    thread = threading.Thread(target=settle)
    thread.start()
    thread.join()
    assert len(errors) == 1


def test_capabilities_claim_nothing_by_default_and_belong_to_the_instance() -> None:
    nothing = Capabilities()
    assert not any(
        getattr(nothing, name)
        for name in Capabilities.__slots__
        if name not in ("keys", "ordering", "redelivery", "attempts")
    )
    assert {nothing.keys, nothing.ordering, nothing.redelivery, nothing.attempts} == {"none"}
    with pytest.raises(AttributeError):
        nothing.durable = True  # type: ignore[misc]

    class Plain:
        capabilities = "many"

    assert capabilities_of(Plain()) == capabilities_of(object()) == nothing
    assert capabilities_of(MemoryBackend("message.caps", lease=7.0)).lease == 7.0
    error = unsupported("b", "peek()", "peek")
    assert str(error) == "backend 'b' does not support peek() (capability 'peek')"
    assert isinstance(error, NotImplementedError)
