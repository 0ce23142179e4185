"""`BaseBackend`: what it refuses before anything is sent or taken."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence, Set
from typing import Any, ClassVar, Self

import pytest

from abe.backends.message_queue.base import (
    BaseBackend,
    Capabilities,
    KeyFilter,
    Message,
    Outgoing,
    Receiver,
)
from abe.backends.message_queue.service.memory import MemoryBackend
from abe.errors import (
    BackendClosedError,
    ConnectionLostError,
    InvalidKeyError,
    LoopError,
    UnsupportedError,
)


class Minimal(BaseBackend):
    """Keeps what was sent, and counts who wants to receive."""

    name: ClassVar[str] = "minimal"

    def __init__(self, **capabilities: Any) -> None:
        super().__init__()
        self.capabilities = Capabilities(**capabilities)
        self.sent: list[Outgoing] = []

    @classmethod
    def from_env(cls) -> Self:
        return cls()

    async def _send(self, items: Sequence[Outgoing]) -> None:
        self.sent += items

    def _receiver(self, group: str | None, keys: KeyFilter) -> Receiver:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"headers": {"a": "b"}}, "publish(headers=…) (capability 'headers')"),
        ({"delay": 1.5}, "publish(delay=…) (capability 'delay')"),
    ],
)
async def test_what_is_not_declared_is_not_sent(options: dict[str, Any], text: str) -> None:
    backend = Minimal()
    with pytest.raises(UnsupportedError) as caught:
        await backend.publish("k", {}, **options)
    assert str(caught.value) == f"backend 'minimal' does not support {text}"
    assert backend.sent == []


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"group": "g"}, "consume(group=…) (capability 'groups')"),
        ({"keys": "a.*"}, "consume(keys=…) (capability 'keys')"),
    ],
)
def test_what_is_not_declared_opens_no_stream(options: dict[str, Any], text: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        Minimal().consume(**options)
    assert str(caught.value) == f"backend 'minimal' does not support {text}"


@pytest.mark.parametrize(
    ("attempts", "prefetch", "most"),
    [
        ("exact", None, 1024),
        ("none", None, 1024),
        ("upper", None, 1024),
        ("upper", 5, 5),
        ("exact", 5, 5),
        ("exact", 5000, 1024),
    ],
)
def test_how_much_is_received_ahead(attempts: Any, prefetch: int | None, most: int) -> None:
    stream = Minimal(attempts=attempts).consume(prefetch=prefetch)
    assert stream.subscription.prefetch._most == most


def test_it_belongs_to_the_event_loop_that_used_it_first() -> None:
    backend = Minimal()
    asyncio.run(backend.publish("k", {"n": 1}))
    with pytest.raises(LoopError, match="backend 'minimal' is in use on another event loop"):
        asyncio.run(backend.publish("k", {"n": 2}))
    assert [item.body for item in backend.sent] == ['{"n":1}']


class Looking(Minimal):
    """Notes the arguments of its hooks."""

    calls: ClassVar[list[Any]] = []

    async def _peek(self, keys: KeyFilter, group: str | None, limit: int) -> list[Message]:
        self.calls.append((keys.patterns, group, limit))
        return []

    async def _replay(self, group: str | None, ids: Set[str] | None, limit: int) -> int:
        self.calls.append((ids, limit))
        return 0

    async def _ping(self) -> None:
        await asyncio.get_running_loop().create_future()


async def test_hooks_get_their_arguments_checked() -> None:
    backend = Looking(groups=True, peek=True, dead_letters=True)
    backend.calls.clear()
    await backend.peek("b.*", group="g", limit=-1)
    await backend.peek(limit=10**30)
    await backend.replay(ids="one")
    await backend.replay(ids=iter(["one", "two"]), limit=3)
    assert backend.calls[0] == (("b.*",), "g", 0)
    assert backend.calls[1][:2] == ((), None)
    assert backend.calls[2][0] == {"one"}
    assert backend.calls[3] == ({"one", "two"}, 3)
    with pytest.raises(InvalidKeyError):
        await backend.peek(group="no good")
    with pytest.raises(UnsupportedError, match=r"does not support stats\(\)"):
        await backend.stats()
    with pytest.raises(UnsupportedError, match=r"peek\(group=…\)"):
        await Looking(peek=True).peek(group="g")
    await backend.aclose()
    with pytest.raises(BackendClosedError):
        await backend.peek()
    assert len(backend.calls) == 4


async def test_a_broker_that_does_not_answer_a_ping_in_time_is_lost() -> None:
    with pytest.raises(ConnectionLostError, match=r"Looking .* did not answer in 0.01 s"):
        await Looking().ping(0.01)


async def test_a_closed_stream_is_forgotten() -> None:
    """A service opens streams for years; what a backend holds must not grow with them."""
    async with MemoryBackend("forgets") as backend:
        for _ in range(3):
            async with backend.consume():
                assert len(backend._subscriptions) == 1
            assert backend._subscriptions == set()
