"""Connections that are slow, silent or cut: nothing is lost, counted, reordered or misreported."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from abe.backends.message_queue.base import KeyFilter, Outcome, Settlement
from abe.errors import ConnectionLostError
from abe_backend_redis import scripts
from abe_backend_redis.backend import RedisBackend
from abe_backend_redis.receiver import RedisReceiver
from abe_backend_redis.testing import RedisServer


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 30))


async def drained(receiver: RedisReceiver) -> list[tuple[int, int]]:
    """Return number and attempt of everything that can be taken."""
    taken = []
    while found := await receiver.receive(100, 0.3):
        taken += [(delivery.message["n"], delivery.message.attempt) for delivery in found]
    return taken


def test_a_large_answer_takes_as_long_as_it_takes(
    server: RedisServer, prefix: str, proxied: Any
) -> None:
    async def main() -> None:
        async with proxied(server) as proxy, RedisBackend(server.url, prefix=prefix) as publisher:
            await publisher.publish("k", {"n": 1, "text": "x" * 400_000})
            proxy.rate = 400_000
            async with RedisBackend(proxy.url, prefix=prefix, timeout=0.4) as queue:
                async with queue.consume() as stream:
                    message = await anext(stream)
                assert message.attempt == 1
                assert len(await queue.peek()) == 1

    run(main())


def test_a_large_message_takes_as_long_to_publish(
    server: RedisServer, prefix: str, proxied: Any
) -> None:
    async def main() -> None:
        async with (
            proxied(server) as proxy,
            RedisBackend(proxy.url, prefix=prefix, timeout=0.5) as queue,
        ):
            proxy.hold.clear()
            publishing = asyncio.create_task(queue.publish("k", {"text": "x" * 200_000}))
            done, _ = await asyncio.wait([publishing], timeout=1.0)
            proxy.hold.set()
            await publishing
            assert not done, "200 kB may take four seconds"

    run(main())


@pytest.mark.parametrize("control_works", [True, False])
def test_an_answer_that_was_lost_is_recalled(
    server: RedisServer, prefix: str, proxied: Any, control_works: bool
) -> None:
    """In order, uncounted, and beside what the consumer has in hand."""

    async def main() -> None:
        async with (
            proxied(server) as proxy,
            RedisBackend(server.url, prefix=prefix) as publisher,
            RedisBackend(proxy.url, prefix=prefix, timeout=0.3) as queue,
        ):
            first, second = (queue._receiver(None, KeyFilter()) for _ in range(2))
            await first.open()
            await publisher.publish_many([{"n": n} for n in range(3)], key="k")
            held = await first.receive(2, 5.0)
            assert await first.settle([Settlement(held[1], Outcome.RELEASE)]) == ()
            await publisher.publish_many([{"n": n} for n in range(3, 6)], key="k")
            proxy.lose_answers = True
            with pytest.raises(ConnectionLostError):
                await first.receive(10, 5.0)
            if control_works:
                proxy.lose_answers = False
            await first.aclose()
            proxy.lose_answers = False
            await publisher.publish("k", {"n": 6})
            await second.open()
            assert await drained(second) == [(n, 1) for n in range(1, 7)]
            assert await second.settle([Settlement(held[0], Outcome.ACK)]) == ()
            await second.aclose()

    run(main())


@pytest.mark.parametrize("cut_at", [1, 40, 64, 150])
def test_a_lost_connection_changes_no_order(
    server: RedisServer, prefix: str, proxied: Any, cut_at: int
) -> None:
    async def main() -> None:
        async with (
            proxied(server) as proxy,
            RedisBackend(server.url, prefix=prefix) as publisher,
            RedisBackend(proxy.url, prefix=prefix) as queue,
        ):
            await publisher.publish_many([{"n": n} for n in range(200)], key="k")
            seen = []
            async with queue.consume() as stream:
                async for message in stream:
                    if message.attempt == 1:
                        seen.append(message["n"])
                    if len(seen) == cut_at:
                        proxy.cut()
                    if len(seen) == 200:
                        break
            assert seen == [*range(200)]

    run(main())


def test_a_request_that_arrives_after_it_was_given_up_takes_nothing(
    server: RedisServer, prefix: str
) -> None:
    async def main() -> None:
        async with RedisBackend(server.url, prefix=prefix) as queue:
            late, other = (queue._receiver(None, KeyFilter()) for _ in range(2))
            await late.open()
            await queue.publish("k", {"n": 1})
            await queue._control.run(scripts.RECALL, "$default", late._name, 1)
            assert await late.receive(1, 0.2) == ()
            assert await drained(other) == [(1, 1)]
            for receiver in (late, other):
                await receiver.aclose()

    run(main())


@pytest.mark.parametrize("outcome", [Outcome.ACK, Outcome.REJECT])
def test_a_settlement_that_did_not_arrive_is_reported_lost(
    server: RedisServer, prefix: str, proxied: Any, outcome: Outcome
) -> None:
    async def main() -> None:
        async with (
            proxied(server) as proxy,
            RedisBackend(server.url, prefix=prefix) as direct,
            RedisBackend(proxy.url, prefix=prefix, timeout=0.3, lease=0.5) as queue,
        ):
            receivers = [queue._receiver(None, KeyFilter()), direct._receiver(None, KeyFilter())]
            await receivers[0].open()
            await direct.publish("k", {"n": 1})
            (held,) = await receivers[0].receive(1, 5.0)
            settlement = Settlement(held, outcome)
            proxy.hold.clear()
            with pytest.raises(ConnectionLostError):
                await receivers[0].settle([settlement])
            (again,) = await receivers[1].receive(1, 5.0)
            assert again.message.attempt == 2
            proxy.cut()
            proxy.hold.set()
            (failure,) = await receivers[0].settle([settlement])
            assert failure == (settlement, None)
            for receiver in receivers:
                await receiver.aclose()

    run(main())


@pytest.mark.parametrize("outcome", [Outcome.ACK, Outcome.REJECT, Outcome.NACK])
def test_a_settlement_whose_answer_was_lost_is_not(
    server: RedisServer, prefix: str, proxied: Any, outcome: Outcome
) -> None:
    async def main() -> None:
        async with (
            proxied(server) as proxy,
            RedisBackend(proxy.url, prefix=prefix, timeout=0.3) as queue,
        ):
            receiver = queue._receiver(None, KeyFilter())
            await receiver.open()
            await queue.publish("k", {"n": 1})
            (held,) = await receiver.receive(1, 5.0)
            proxy.lose_answers = True
            with pytest.raises(ConnectionLostError):
                await receiver.settle([Settlement(held, outcome)])
            proxy.lose_answers = False
            assert await receiver.settle([Settlement(held, outcome)]) == ()
            await receiver.aclose()

    run(main())


def test_a_connection_that_was_dropped_while_idle(
    server: RedisServer, prefix: str, proxied: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is found out before it is used; a waiting consumer finds out by itself."""
    monkeypatch.setattr("abe_backend_redis.link.IDLE", 0.0)
    monkeypatch.setattr("abe_backend_redis.link.HEALTH", 0.2)
    monkeypatch.setattr("abe_backend_redis.receiver.HEALTH", 0.2)
    monkeypatch.setattr("abe_backend_redis.receiver.LONGEST_WAIT", 0.3)

    async def main() -> None:
        async with (
            proxied(server) as proxy,
            RedisBackend(server.url, prefix=prefix) as publisher,
            RedisBackend(proxy.url, prefix=prefix, timeout=20.0) as queue,
        ):
            await queue.publish("k", {"n": 1})
            await queue.stats()
            async with queue.consume() as stream:
                assert await anext(stream) == {"n": 1}
                waiting = asyncio.ensure_future(anext(stream))
                await asyncio.sleep(0)
                proxy.forget()
                async with asyncio.timeout(10):
                    await publisher.publish("k", {"n": 2})
                    assert await waiting == {"n": 2}
                    await queue.publish("k", {"n": 3})
                    await queue.ping(5.0)

    run(main())
