"""What the Lua scripts promise: nothing half done, no delay cut short, nobody waiting in vain."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
import redis.asyncio

from abe.backends.message_queue.base import KeyFilter, Outcome, Settlement
from abe.errors import ConfigurationError
from abe_backend_redis.backend import RedisBackend
from abe_backend_redis.testing import RedisServer

client: Any = redis.asyncio.Redis.from_url


LOOKS = ("xpending", "hexists", "exists")


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 30))


@pytest.mark.parametrize(
    ("outcome", "missing"),
    [
        (Outcome.RELEASE, "zadd"),
        (Outcome.NACK, "hset"),
        (Outcome.NACK, "zadd"),
        (Outcome.REJECT, "xadd"),
    ],
)
def test_a_script_that_is_stopped_half_way_loses_nothing(
    server: RedisServer, old_server: RedisServer, prefix: str, outcome: Outcome, missing: str
) -> None:
    async def main(server: RedisServer) -> None:
        async with (
            RedisBackend(server.url, prefix=prefix) as queue,
            client(server.url) as raw,
            RedisBackend(
                f"redis://{missing}:pw@127.0.0.1:{server.port}", prefix=prefix, lease=0.2
            ) as restricted,
        ):
            rights = ("on", ">pw", "~*", "+@all", f"-{missing}")
            await raw.execute_command("ACL", "SETUSER", missing, "reset", *rights)
            await queue.publish("a", {"n": 1})
            async with queue.consume(group="g"):
                pass
            receiver = restricted._receiver("g", KeyFilter())
            (delivery,) = await receiver.receive(1, 5.0)
            delay = 60.0 if outcome is Outcome.NACK else 0.0
            with pytest.raises(ConfigurationError, match=r"permissions|can't run"):
                await receiver.settle([Settlement(delivery, outcome, delay)])
            await receiver.aclose()
            async with queue.consume(group="g") as stream:
                assert await stream.take(1, timeout=10) == [{"n": 1}]

    run(main(server))
    run(main(old_server))


def test_memory_that_is_full_stops_no_consumer(
    server: RedisServer, old_server: RedisServer, prefix: str
) -> None:
    async def main(server: RedisServer) -> None:
        async with (
            RedisBackend(server.url, prefix=prefix) as queue,
            RedisBackend(server.url, prefix=prefix, lease=0.5) as hasty,
        ):
            await queue.publish_many([("a", {"n": n}) for n in range(4)])
            first = hasty._receiver(None, KeyFilter())
            await first.open()
            held = await first.receive(4, 5.0)
            outcomes = (Outcome.ACK, Outcome.RELEASE, Outcome.REJECT)
            ends = [Settlement(*pair) for pair in zip(held[:3], outcomes, strict=True)]
            async with client(server.url) as raw:
                await raw.config_set("maxmemory", 1)
                try:
                    assert await first.settle(ends) == ()
                    await first.aclose()
                    second = queue._receiver(None, KeyFilter())
                    await second.open()
                    # One was released, of the other the lease lapses.
                    taken = [*await second.receive(1, 5.0), *await second.receive(1, 5.0)]
                    assert sorted((d.message["n"], d.message.attempt) for d in taken) == [
                        (1, 1),
                        (3, 2),
                    ]
                    await second.aclose()
                    new = queue._receiver("new", KeyFilter())
                    await new.open()
                    # Held beyond its lease, beside others that take.
                    holder = hasty._receiver("new", KeyFilter())
                    (kept,) = await holder.receive(1, 5.0)
                    others = [kept]
                    while kept.message.id not in {it.message.id for it in others[1:]}:
                        others += await new.receive(1, 5.0)
                    assert others[-1].message.attempt == 2
                    for receiver in (holder, new):
                        await receiver.aclose()
                finally:
                    await raw.config_set("maxmemory", 0)
            assert (await queue.stats()).total("dead") == 1

    run(main(server))
    run(main(old_server))


@pytest.mark.parametrize("keys", [None, ["k"]])
def test_nothing_overtakes_what_is_handed_over_singly(
    server: RedisServer, prefix: str, keys: list[str] | None
) -> None:
    """Messages wait behind one at its third attempt, and newer ones stay behind them."""

    async def main() -> None:
        async with RedisBackend(server.url, prefix=prefix) as queue:
            receiver = queue._receiver(None, KeyFilter(keys))
            await receiver.open()
            await queue.publish_many([{"n": n} for n in range(4)], key="k")
            for _ in range(2):
                found = await receiver.receive(4, 5.0)
                ends = [
                    Settlement(it, Outcome.NACK if it.message["n"] == 1 else Outcome.RELEASE)
                    for it in found
                ]
                assert await receiver.settle(ends) == ()
            await queue.publish_many([{"n": n} for n in range(4, 8)], key="k")
            taken: list[list[int]] = []
            while sum(map(len, taken)) < 8:
                found = await receiver.receive(4, 5.0)
                taken.append([delivery.message["n"] for delivery in found])
                ends = [Settlement(it, Outcome.ACK) for it in found]
                assert await receiver.settle(ends) == ()
            assert taken[:2] == [[0], [1]]
            assert [n for numbers in taken for n in numbers] == [*range(8)]
            await receiver.aclose()

    run(main())


class TestDelays:
    def test_purging_one_group_cuts_no_delay_of_another_short(
        self, server: RedisServer, prefix: str
    ) -> None:
        async def main() -> None:
            async with (
                RedisBackend(server.url, prefix=prefix) as queue,
                client(server.url) as raw,
                queue.consume(group="a"),
                queue.consume(group="b") as other,
            ):
                await queue.publish("k", {}, delay=60)
                assert await queue.purge(group="a") == 1
                assert await other.take(1, timeout=0.2) == []
                assert (await queue.stats()).total("delayed", group="b") == 1
                assert await queue.purge(group="b") == 1
                assert not await raw.exists(f"{{{prefix}}}:scheduled", f"{{{prefix}}}:delayed")

        run(main())

    def test_a_delay_ends_while_there_is_no_group(self, server: RedisServer, prefix: str) -> None:
        async def main() -> None:
            async with RedisBackend(server.url, prefix=prefix) as queue:
                await queue.publish("k", {"n": 0}, headers={"a": "b"}, delay=0.001)
                await queue.publish("k", {"n": 1}, delay=60)
                await asyncio.sleep(0.01)
                (due,) = await queue.peek()
                assert (due, due.headers) == ({"n": 0}, {"a": "b"})
                assert due.timestamp is not None
                stats = await queue.stats()
                assert (stats.total("ready"), stats.total("delayed")) == (1, 1)
                async with queue.consume() as stream:
                    assert (await anext(stream)).id == due.id

        run(main())

    def test_many_that_are_due_at_once_hold_up_no_filter(
        self, server: RedisServer, prefix: str
    ) -> None:
        async def main() -> None:
            async with RedisBackend(server.url, prefix=prefix) as queue, client(server.url) as raw:
                keys = [*["other"] * 1000, "mine"]
                await asyncio.gather(*(queue.publish(key, {}, delay=60) for key in keys))
                receiver = queue._receiver(None, KeyFilter(["mine"]))
                await receiver.open()
                assert await receiver.receive(1, 0.2) == ()
                async with raw.pipeline() as commands:
                    for id_ in await raw.zrange(f"{{{prefix}}}:scheduled", 0, -1):
                        commands.zincrby(f"{{{prefix}}}:scheduled", -60_000, id_)
                    await commands.execute()
                started = asyncio.get_running_loop().time()
                (found,) = await receiver.receive(1, 20.0)
                assert found.message.key == "mine"
                assert asyncio.get_running_loop().time() - started < 5.0
                await receiver.aclose()

        run(main())


def test_a_group_of_the_same_name_is_another(server: RedisServer, prefix: str) -> None:
    """What a deleted group had in hand does not settle anything of its successor."""

    async def main() -> None:
        async with RedisBackend(server.url, prefix=prefix) as queue:
            async with queue.consume(group="other"):
                pass
            await queue.publish("k", {"n": 0})
            receivers = [queue._receiver("g", KeyFilter()) for _ in range(2)]
            await receivers[0].open()
            (stale,) = await receivers[0].receive(1, 5.0)
            await queue.delete_group("g")
            await receivers[1].open()
            (held,) = await receivers[1].receive(1, 5.0)
            assert stale.message.id == held.message.id
            (failure,) = await receivers[0].settle([Settlement(stale, Outcome.ACK)])
            assert failure.error is None
            assert await receivers[1].settle([Settlement(held, Outcome.RELEASE)]) == ()
            for receiver in receivers:
                await receiver.aclose()

    run(main())


def test_numbers_and_purges_of_a_group_that_is_deleted_meanwhile(
    server: RedisServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with RedisBackend(server.url, prefix=prefix) as queue:
            run_script = queue._control.run

            async def then_delete(*args: Any) -> Any:
                answer = await run_script(*args)
                async with RedisBackend(server.url, prefix=prefix) as other:
                    if "g" in await other.groups():
                        await other.delete_group("g")
                return answer

            async with queue.consume(group="left"):
                pass
            for call in (queue.stats, lambda: queue.purge(group="g")):
                async with queue.consume(group="g"):
                    pass
                await queue.publish("k", {})
                with monkeypatch.context() as patch:
                    patch.setattr(queue._control, "run", then_delete)
                    await call()
            assert {entry.group for entry in (await queue.stats()).entries} == {"left"}

    run(main())


@pytest.mark.parametrize("count", [1, 7, 40, 500])
def test_what_was_left_out_comes_in_order_of_all_keys(
    server: RedisServer, prefix: str, count: int
) -> None:
    async def main() -> None:
        async with RedisBackend(server.url, prefix=prefix) as queue:
            receivers = [queue._receiver(None, KeyFilter([it])) for it in ("none", "odd.*")]
            await receivers[0].open()
            # Some keys have one message, some many, and many side by side.
            keys = [f"odd.{n * n % 37}" if n % 3 else "odd.0" for n in range(300)]
            await queue.publish_many(
                (key if n % 2 else "even", {"n": n}) for n, key in enumerate(keys)
            )
            assert await receivers[0].receive(1, 0.2) == ()
            taken: list[int] = []
            while len(taken) < 150:
                found = await receivers[1].receive(count, 5.0)
                assert 1 <= len(found) <= count
                taken += [delivery.message["n"] for delivery in found]
            assert taken == [n for n in range(300) if n % 2]
            assert await queue.purge("odd.*") == 0
            assert await queue.purge("even") == 150
            for receiver in receivers:
                await receiver.aclose()

    run(main())


def test_each_message_is_not_looked_up_in_every_group(server: RedisServer, prefix: str) -> None:
    async def main() -> None:
        async with RedisBackend(server.url, prefix=prefix) as queue, client(server.url) as raw:
            names = [f"done-{n}" for n in range(20)]
            for name in [*names, "me", "not-yet"]:
                async with queue.consume(group=name):
                    pass
            await queue.publish_many([("k", {})] * 60)
            for name in names:
                await raw.xgroup_setid(f"{{{prefix}}}:messages", name, "$")
            receiver = queue._receiver("me", KeyFilter())
            found = await receiver.receive(60, 5.0)
            await raw.config_resetstat()
            assert await receiver.settle([Settlement(it, Outcome.ACK) for it in found]) == ()
            stats = await raw.info("commandstats")
            calls = sum(stats.get(f"cmdstat_{it}", {"calls": 0})["calls"] for it in LOOKS)
            assert calls < 60, f"{calls} looks for {len(found)} messages in 22 groups"
            assert await raw.xlen(f"{{{prefix}}}:messages") == 60
            await receiver.aclose()

    run(main())


def test_a_filter_looks_at_nothing_that_it_leaves_out(server: RedisServer, prefix: str) -> None:
    async def main() -> None:
        async with RedisBackend(server.url, prefix=prefix) as queue, client(server.url) as raw:
            receiver = queue._receiver("g", KeyFilter(["mine.*"]))
            await receiver.open()
            looks = []
            for count in (100, 1500):
                await queue.publish_many((f"other.{n}", {}) for n in range(count))
                assert await receiver.receive(1, 0.2) == ()
                await raw.config_resetstat()
                await queue.publish("other.new", {})
                assert await receiver.receive(1, 0.2) == ()
                await queue.publish("mine.a", {})
                (found,) = await receiver.receive(1, 5.0)
                assert await receiver.settle([Settlement(found, Outcome.ACK)]) == ()
                stats = await raw.info("commandstats")
                looks.append(sum(stats[name]["calls"] for name in stats))
            assert looks[1] < looks[0] + 20
            await receiver.aclose()

    run(main())
