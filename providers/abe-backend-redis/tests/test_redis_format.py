"""Namespaces of another format: converted, or refused on both sides; nothing is lost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

import pytest
import redis.asyncio

from abe.errors import ConfigurationError
from abe_backend_redis.backend import RedisBackend
from abe_backend_redis.testing import RedisServer

client: Any = redis.asyncio.Redis.from_url


LATER = 60_000


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 60))


class Format1:
    """Writes as the version for format 1 did, by what the head of its scripts says."""

    def __init__(self, raw: Any, prefix: str) -> None:
        self.raw = raw
        self.base = f"{{{prefix}}}:"
        self.ids: list[str] = []

    async def publish(self, key: str, payload: str, delay: int = 0, **entry: str) -> str:
        id_: str = (await self.raw.xadd(f"{self.base}log", {"k": key, **entry})).decode()
        headers = {"h": '{"a":"b"}'} if payload.endswith("0}") else {}
        await self.raw.xadd(f"{self.base}stream:{key}", {"p": payload, **headers}, id=id_)
        if delay:
            due = (await self.raw.time())[0] * 1000 + delay
            await self.raw.zadd(f"{self.base}due", {id_: due})
        return id_

    async def group(self, name: str) -> None:
        await self.raw.xgroup_create(f"{self.base}log", name, "0", mkstream=True)
        await self.raw.set(f"{self.base}epoch:{name}", 1)

    async def read(self, name: str, count: int) -> list[str]:
        answer = await self.raw.xreadgroup(name, "old-30000", {f"{self.base}log": ">"}, count)
        rows = answer[0][1] if isinstance(answer, list) else next(iter(answer.values()))[0]
        return [row[0].decode() for row in rows]

    async def park(self, name: str, id_: str, key: str, attempts: int, due: int = 0) -> None:
        base = self.base
        await self.raw.hset(f"{base}parked:{name}", id_, attempts)
        if due:
            await self.raw.zadd(f"{base}later:{name}", {id_: due})
        else:
            ms, _, seq = id_.partition("-")
            score = (int(ms) - 1577836800000) * 4096 + int(seq)
            await self.raw.zadd(f"{base}ready:{name}", {id_: score})
            await self.raw.zadd(f"{base}ready:{name}#{key}", {id_: score})
            await self.raw.sadd(f"{base}keys:{name}", key)
        await self.raw.xack(f"{base}log", name, id_)


def test_a_namespace_of_format_1_is_converted(
    server: RedisServer, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with client(server.url) as raw, RedisBackend(server.url, prefix=prefix) as queue:
            old = Format1(raw, prefix)
            for name in ("g", "other", "$default"):
                await old.group(name)
            ids = [await old.publish(f"k.{n % 3}", f'{{"n":{n}}}') for n in range(1200)]
            soon = await old.publish("soon", '{"n":-1}', delay=LATER, d="1")
            await old.publish("mine", '{"n":-2}', g="other", o="1600000000000-0")
            read = await old.read("g", 6)
            assert read == ids[:6]
            await raw.xack(f"{old.base}log", "g", ids[0])
            await old.park("g", ids[1], "k.1", 0)
            await old.park("g", ids[2], "k.2", 2)
            await old.park("g", ids[3], "k.0", 1, due=LATER)  # long ago
            # 4 and 5 are in the hands of an old worker.
            assert len(await old.read("$default", 2000)) == 1202
            await raw.xack(f"{old.base}log", "$default", *ids)
            due = (await raw.zscore(f"{old.base}due", soon)) or 0
            await old.park("$default", soon, "soon", 0, due=int(due))
            await raw.xadd(
                f"{old.base}dead:g",
                {"i": ids[0], "k": "k.0", "n": 5, "p": '{"n":0}', "h": "", "d": '{"why":"x"}'},
            )

            stats = await queue.stats()
            numbers = {
                group: (stats.total("ready", group=group), stats.total("delayed", group=group))
                for group in ("g", "other", None)
            }
            # Of the message in the old default group's hands nobody knows that it is for another.
            assert numbers == {"g": (1199, 1), "other": (1201, 1), None: (1, 1)}
            assert await queue.replay(group="g") == 1
            async with queue.consume(group="g", prefetch=1) as stream:
                taken = [await anext(stream) for _ in range(1200)]
                assert [m["n"] for m in taken] == [*range(1, 1200), 0]
                assert [m.attempt for m in taken[:6]] == [1, 3, 2, 2, 2, 1]
                assert [m.id for m in taken[:-1]] == ids[1:]
                assert taken[9].headers == {"a": "b"}
                assert await stream.take(1, timeout=0.2) == []
            async with queue.consume(group="other") as stream:
                taken = await stream.take(1201, timeout=10)
                assert [m["n"] for m in taken] == [*range(1200), -2]
                assert taken[-1].id == "1600000000000-0"
            left = {name.decode() async for name in raw.scan_iter(f"{old.base}*")}
            names = {name.removeprefix(old.base).partition(":")[0] for name in left}
            assert not names & {"stream", "parked", "keys", "due", "dirty", "kept", "format1"}

    with caplog.at_level(logging.WARNING, logger="abe_backend_redis"):
        run(main())
    assert "converted" in caplog.text


def test_an_old_worker_is_refused_and_harms_nothing(server: RedisServer, prefix: str) -> None:
    """It knows nothing of formats, so Redis itself has to stop it: its log is no stream."""

    async def main() -> None:
        async with client(server.url) as raw, RedisBackend(server.url, prefix=prefix) as queue:
            async with queue.consume(group="g"):
                pass
            await queue.publish("k", {"n": 1})
            old = Format1(raw, prefix)
            for call in (old.publish("k", "{}"), old.read("g", 1), old.group("h")):
                with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
                    await call
            async with queue.consume(group="g") as stream:
                assert await stream.take(2, timeout=0.3) == [{"n": 1}]

    run(main())


def test_two_convert_at_once_and_publish(server: RedisServer, prefix: str) -> None:
    async def main() -> None:
        async with client(server.url) as raw:
            old = Format1(raw, prefix)
            await old.group("g")
            for n in range(1100):
                await old.publish("k", f'{{"n":{n}}}')
            both = [RedisBackend(server.url, prefix=prefix) for _ in range(2)]
            await asyncio.gather(*(it.publish("k", {"n": 1100 + n}) for n, it in enumerate(both)))
            async with both[0].consume(group="g") as stream:
                taken = [m["n"] for m in await stream.take(1102, timeout=10)]
                assert taken[:1100] == [*range(1100)]
                assert sorted(taken[1100:]) == [1100, 1101]
            for backend in both:
                await backend.aclose()

    run(main())


def test_a_newer_format_is_refused(server: RedisServer, prefix: str) -> None:
    async def main() -> None:
        async with client(server.url) as raw, RedisBackend(server.url, prefix=prefix) as queue:
            await raw.set(f"{{{prefix}}}:log", "3")
            for call in (queue.publish("k", {}), queue.stats(), anext(queue.consume())):
                with pytest.raises(ConfigurationError, match="upgrade abe-backend-redis"):
                    await call

    run(main())
