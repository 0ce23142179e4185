"""What is kept for later groups, for how long, and what is never dropped."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

import pytest

from abe_backend_redis.backend import RedisBackend
from abe_backend_redis.publisher import Limits
from abe_backend_redis.testing import RedisServer


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 30))


def test_settled_messages_are_kept_for_later_groups(server: RedisServer, prefix: str) -> None:
    async def main() -> None:
        limits = Limits(length=3)
        async with RedisBackend(server.url, prefix=prefix, limits=limits) as queue:
            async with queue.consume(group="a") as stream:
                await queue.publish_many([{"n": n} for n in range(5)], key="k")
                assert len(await stream.take(5, timeout=5)) == 5
            await queue.publish("k", {"n": 5})
            seen = await queue.peek(group="new")
            assert [m["n"] for m in seen] == [3, 4, 5]
            async with queue.consume(group="new") as stream:
                assert [m["n"] for m in await stream.take(3, timeout=5)] == [3, 4, 5]

    run(main())


def test_unsettled_messages_outlive_their_limits(server: RedisServer, prefix: str) -> None:
    async def main() -> None:
        limits = Limits(length=2, age=0.05)
        async with RedisBackend(server.url, prefix=prefix, limits=limits) as queue:
            async with queue.consume(group="a"):
                pass
            await queue.publish_many([{"n": n} for n in range(5)], key="k")
            await asyncio.sleep(0.1)
            await queue.publish("k", {"n": 5})
            async with queue.consume(group="a") as stream:
                assert len(await stream.take(6, timeout=5)) == 6

    run(main())


def test_one_message_that_has_to_stay_keeps_no_others(server: RedisServer, prefix: str) -> None:
    async def main(limits: Limits, prefix: str, left: list[int]) -> None:
        async with RedisBackend(server.url, prefix=prefix, limits=limits) as queue:
            async with queue.consume(group="a") as stream:
                await queue.publish("k", {"n": -1})
                await (await anext(stream)).nack(delay=60)
                await stream.flush()
                for n in range(5):
                    await asyncio.sleep(0.06)
                    await queue.publish("k", {"n": n})
                    await (await anext(stream)).ack()
                    await stream.flush()
            assert [m["n"] for m in await queue.peek(group="new")] == left

    run(main(Limits(length=2), prefix, [-1, 3, 4]))
    run(main(Limits(age=0.05), f"{prefix}.age", [-1, 4]))


def test_deleting_and_purging_one_group_keeps_what_is_retained(
    server: RedisServer, prefix: str
) -> None:
    async def main() -> None:
        async with RedisBackend(server.url, prefix=prefix, limits=Limits(age=600.0)) as queue:
            for group in ("idle", "stray"):
                async with queue.consume(group=group):
                    pass
            async with queue.consume(group="a") as stream:
                await queue.publish_many([{"n": n} for n in range(3)], key="k")
                assert len(await stream.take(3, timeout=5)) == 3
            assert await queue.purge(group="idle") == 3
            assert await queue.peek(group="idle") == []
            await queue.delete_group("stray")
            assert [m["n"] for m in await queue.peek(group="new")] == [0, 1, 2]

    run(main())


def test_unsettled_messages_are_dropped_when_asked_to_with_a_warning(
    server: RedisServer, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        limits = Limits(length=2, drop=True)
        async with RedisBackend(server.url, prefix=prefix, limits=limits) as queue:
            async with queue.consume(group="a") as stream:
                await queue.publish_many([{"n": n} for n in range(2)], key="k")
                held = await anext(stream)
                await held.nack(delay=60)
                await stream.flush()
            await queue.publish_many([{"n": n} for n in range(2, 5)], key="k")
            async with queue.consume(group="a") as stream:
                assert [m["n"] for m in await stream.take(2, timeout=5)] == [3, 4]
                assert await stream.take(1, timeout=0.2) == []
            assert (await queue.stats()).total("delayed", group="a") == 0

    with caplog.at_level(logging.WARNING, logger="abe_backend_redis"):
        run(main())
    assert "retention dropped 3 messages" in caplog.text


def test_what_a_filter_left_out_can_be_dropped_too(server: RedisServer, prefix: str) -> None:
    async def main() -> None:
        limits = Limits(length=2, drop=True)
        async with RedisBackend(server.url, prefix=prefix, limits=limits) as queue:
            async with queue.consume(group="a", keys=["other"]) as stream:
                await queue.publish_many([{"n": n} for n in range(2)], key="k")
                await queue.publish("other", {})
                assert len(await stream.take(1, timeout=5)) == 1
            assert (await queue.stats()).total("ready", group="a") == 2
            await queue.publish_many([{"n": n} for n in range(2, 5)], key="k")
            assert (await queue.stats()).total("ready", group="a") == 2
            async with queue.consume(group="a") as stream:
                assert [m["n"] for m in await stream.take(2, timeout=5)] == [3, 4]

    run(main())


def test_the_old_are_forgotten_without_a_group(server: RedisServer, prefix: str) -> None:
    async def main() -> None:
        async with RedisBackend(server.url, prefix=prefix, limits=Limits(age=0.1)) as queue:
            await queue.publish("k", {"n": 0})
            await asyncio.sleep(0.2)
            await queue.publish("other", {"n": 1})
            assert [m["n"] for m in await queue.peek()] == [1]

    run(main())
