"""Dead letters: what their headers say, and the key that stands in for them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Self

import pytest

from abe.backends.message_queue.base import Message, dead_headers
from abe.backends.message_queue.handling.dead_letters import DeadLetterKey


class Plain:
    """A plain backend whose ``publish`` may fail."""

    def __init__(self) -> None:
        self.published: list[tuple[str, dict[str, Any]]] = []
        self.error: BaseException | None = None

    @classmethod
    def from_env(cls) -> Self:
        raise NotImplementedError

    async def publish(self, key: str, payload: dict[str, Any]) -> None:
        if self.error is not None:
            raise self.error
        self.published.append((key, payload))

    def consume(self, *, group: str | None = None) -> AsyncIterator[dict[str, Any]]:
        raise NotImplementedError


def test_headers_of_a_message_that_nobody_knows_more_of() -> None:
    headers = dead_headers({"a": "b"}, reason="broken", attempts=3, id=None, key=None)
    moment = headers.pop("abe-dead-time")
    assert float(moment) > 1.7e9
    assert headers == {
        "a": "b",
        "abe-dead-reason": "broken",
        "abe-dead-traceback": "",
        "abe-dead-attempts": "3",
        "abe-dead-id": "",
        "abe-dead-key": "",
    }


def test_long_reasons_are_cut_where_it_hurts_least() -> None:
    """The summary keeps its beginning, the traceback its end."""
    reason = "s" * 1500 + "\n" + "first" + "t" * 1000 + "last"
    headers = dead_headers({}, reason=reason, attempts=1, id="1", key="k")
    assert headers["abe-dead-reason"] == "s" * 1000
    assert headers["abe-dead-traceback"] == "t" * 996 + "last"


def test_text_that_is_no_text_is_replaced() -> None:
    headers = dead_headers({}, reason="bad \ud800", attempts=1, id="1", key="k")
    assert headers["abe-dead-reason"] == "bad ?"


async def test_what_was_published_without_a_key_is_known_as_often_as_that() -> None:
    backend = Plain()
    dead = DeadLetterKey(backend, "dead")
    assert not dead.holds(Message({"n": 1}))
    await dead.publish(Message({"n": 1}), "broken")
    await dead.publish(Message({"n": 1}), "broken")
    assert backend.published == [("dead", {"n": 1})] * 2
    seen = [dead.holds(Message({"n": n})) for n in (2, 1, 1, 1)]
    assert seen == [False, True, True, False]


@pytest.mark.parametrize("error", [ConnectionError(), TimeoutError()])
async def test_what_was_not_published_is_not_known(error: Exception) -> None:
    backend = Plain()
    backend.error = error
    dead = DeadLetterKey(backend, "dead")
    with pytest.raises(type(error)):
        await dead.publish(Message({"n": 1}), "broken")
    assert not dead.holds(Message({"n": 1}))


def test_a_key_tells_all() -> None:
    dead = DeadLetterKey(Plain(), "dead")
    assert dead.holds(Message({}, key="dead"))
    assert not dead.holds(Message({}, key="orders"))
