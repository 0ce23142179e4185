"""Dead letters: what their headers say, and the key that stands in for them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Self

import pytest

from abe.backends.message_queue.base import Capabilities, Message, dead_headers
from abe.backends.message_queue.handling.dead_letters import DeadLetterKey
from abe.errors import ConfigurationError


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


async def test_a_copy_that_comes_back_is_refused_by_its_mark() -> None:
    """Never by its content: an equal message is handled."""
    backend = Plain()
    dead = DeadLetterKey(backend, "dead")
    await dead.publish(Message({"n": 1}), "broken")
    ((key, payload),) = backend.published
    assert (key, payload) == ("dead", {"n": 1})
    dead.refuse_own(Message({"n": 1}))
    with pytest.raises(ConfigurationError, match="own group"):
        dead.refuse_own(Message(payload, headers=getattr(payload, "headers", {})))


async def test_a_copy_that_comes_back_without_headers_is_refused_the_second_time() -> None:
    """A backend that carries the bare payload loses the mark of the first copy."""
    backend = Plain()
    dead = DeadLetterKey(backend, "dead")
    await dead.publish(Message({"n": 1}), "broken")
    copies = [Message(dict(payload)) for _, payload in backend.published]
    dead.refuse_own(copies[0])
    await dead.publish(copies[0], "broken again")
    with pytest.raises(ConfigurationError, match="own group"):
        dead.refuse_own(Message(dict(backend.published[-1][1])))


@pytest.mark.parametrize(
    ("keys", "filters", "refused"),
    [("none", None, True), ("consumer", None, True), ("consumer", ["orders.*"], False)],
)
def test_a_key_that_the_group_receives_is_refused(
    keys: Any, filters: list[str] | None, refused: bool
) -> None:
    backend = Plain()
    backend.capabilities = Capabilities(groups=True, keys=keys)  # type: ignore[attr-defined]
    dead = DeadLetterKey(backend, "dead")
    if refused:
        with pytest.raises(ConfigurationError, match="choose a key"):
            dead.check("g", filters)
    else:
        dead.check("g", filters)
