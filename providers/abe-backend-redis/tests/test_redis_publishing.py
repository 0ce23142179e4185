"""Publishing: what is sent together, and what a refusal says."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Coroutine
from typing import Any

import pytest
import redis.asyncio

from abe.errors import ConfigurationError, ConnectionLostError, PublishError
from abe_backend_redis.backend import RedisBackend
from abe_backend_redis.publisher import Limits
from abe_backend_redis.testing import RedisServer

client: Any = redis.asyncio.Redis.from_url


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 30))


def test_concurrent_publishes_share_calls(server: RedisServer, prefix: str) -> None:
    async def main() -> None:
        async with RedisBackend(server.url, prefix=prefix) as queue, client(server.url) as raw:
            await queue.publish("warm", {})
            await raw.config_resetstat()
            await asyncio.gather(*(queue.publish("a", {"n": n}) for n in range(100)))
            calls = (await raw.info("commandstats"))["cmdstat_evalsha"]["calls"]
            assert calls == 1, "all together"
            seen = await queue.peek("a", limit=200)
            assert [m["n"] for m in seen] == list(range(100))

    run(main())


def test_a_cancelled_publish_leaves_the_others_alone(server: RedisServer, prefix: str) -> None:
    async def main() -> None:
        async with RedisBackend(server.url, prefix=prefix) as queue:
            tasks = [asyncio.create_task(queue.publish("a", {"n": n})) for n in range(20)]
            await asyncio.sleep(0)
            tasks[0].cancel()
            tasks[5].cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            accepted = {n for n, result in enumerate(results) if result is None}
            assert accepted == set(range(20)) - {0, 5}
            seen = {m["n"] for m in await queue.peek("a", limit=50)}
            assert seen == set(range(20)), "what was handed over is sent"

    run(main())


def test_a_full_namespace_refuses_and_says_so(server: RedisServer, prefix: str) -> None:
    async def main() -> None:
        limits = Limits(backlog=3)
        async with RedisBackend(server.url, prefix=prefix, limits=limits) as queue:
            publishing = [queue.publish("a", {"n": n}) for n in range(6)]
            results = await asyncio.gather(*publishing, return_exceptions=True)
            assert results[:3] == [None] * 3
            for error in results[3:]:
                assert isinstance(error, PublishError)
                assert error.retryable
                assert "ABE_REDIS_MAX_BACKLOG" in str(error)

    run(main())


def test_a_foreign_key_in_the_way_is_told(server: RedisServer, prefix: str) -> None:
    async def main() -> None:
        async with client(server.url) as raw, RedisBackend(server.url, prefix=prefix) as queue:
            await raw.set(f"{{{prefix}}}:messages", "not a stream")
            with pytest.raises(PublishError, match="WRONGTYPE") as caught:
                await queue.publish("a", {})
            assert not caught.value.retryable

    run(main())


def test_large_messages_share_no_call(
    server: RedisServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("abe_backend_redis.publisher.MAX_BYTES", 1000)

    async def main() -> None:
        async with RedisBackend(server.url, prefix=prefix) as queue, client(server.url) as raw:
            await queue.publish("warm", {})
            await raw.config_resetstat()
            texts = ["x" * 600] * 3 + ["y" * 2000] + ["z" * 100] * 4
            assert await queue.publish_many([{"t": text} for text in texts], key="a") == 8
            calls = (await raw.info("commandstats"))["cmdstat_evalsha"]["calls"]
            assert calls == 5, "three, one too large, and four together"
            assert [m["t"] for m in await queue.peek("a")] == texts

    run(main())


def test_out_of_memory_may_pass(server: RedisServer, prefix: str) -> None:
    async def main() -> None:
        async with RedisBackend(server.url, prefix=prefix) as queue, client(server.url) as raw:
            await queue.publish("a", {})
            await raw.config_set("maxmemory", 1)
            try:
                with pytest.raises(PublishError, match="OOM") as caught:
                    await queue.publish_many([("a", {}), ("b", {})])
            finally:
                await raw.config_set("maxmemory", 0)
            assert caught.value.retryable
            assert list(caught.value.published) == []
            assert list(caught.value.failed) == [0, 1]
            await queue.publish("b", {})
            assert len(await queue.peek()) == 2

    run(main())


def test_a_key_that_the_user_may_not_write(old_server: RedisServer, prefix: str) -> None:
    """On the oldest server, which wraps what it says of a script."""

    async def main() -> None:
        async with client(old_server.url) as raw:
            base = f"~{{{prefix}}}:"
            keys = (f"{base}log", f"{base}meta")
            await raw.execute_command("ACL", "SETUSER", "writer", "on", ">pw", *keys, "+@all")
        url = f"redis://writer:pw@127.0.0.1:{old_server.port}"
        async with RedisBackend(url, prefix=prefix) as queue:
            with pytest.raises(PublishError, match=r"refuses [^@]*keys") as caught:
                await queue.publish_many([("a", {}), ("b", {}), ("a", {})])
            assert not caught.value.retryable
            assert list(caught.value.published) == []
            assert list(caught.value.failed) == [0, 1, 2]

    run(main())


def test_a_user_that_is_deleted_between_two_calls(
    server: RedisServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("abe_backend_redis.publisher.MAX_ITEMS", 2)

    async def main() -> None:
        async with client(server.url) as raw:
            await raw.execute_command("ACL", "SETUSER", "gone", "on", ">pw", "~*", "+@all")
            url = f"redis://gone:pw@127.0.0.1:{server.port}"
            async with RedisBackend(url, prefix=prefix) as queue:
                run_script = queue._publisher._link.run

                async def once(*args: Any) -> Any:
                    answer = await run_script(*args)
                    await raw.execute_command("ACL", "DELUSER", "gone")
                    await queue._publisher._link.aclose()
                    return answer

                monkeypatch.setattr(queue._publisher._link, "run", once)
                with pytest.raises(PublishError, match="credentials") as caught:
                    await queue.publish_many([("a", {})] * 5)
                assert list(caught.value.published) == [0, 1]
                assert not caught.value.retryable
                with pytest.raises(ConfigurationError, match="credentials"):
                    await queue.publish("a", {})

    run(main())


def test_each_of_those_sent_together_gets_its_own_answer(server: RedisServer, prefix: str) -> None:
    async def main() -> None:
        limits = Limits(backlog=4)
        async with RedisBackend(server.url, prefix=prefix, limits=limits) as queue:
            first, second, several, single = await asyncio.gather(
                queue.publish("a", {"n": 0}),  # at once; the others together
                queue.publish("a", {"n": 1}),
                queue.publish_many([("a", {"n": n}) for n in (2, 3, 4, 5)]),
                queue.publish("a", {"n": 6}),
                return_exceptions=True,
            )
            assert first is second is None
            assert isinstance(several, PublishError)
            assert list(several.published) == [0, 1]
            assert list(several.failed) == [2, 3]
            assert isinstance(single, PublishError)
            assert list(single.published) == []
            assert [message["n"] for message in await queue.peek()] == [0, 1, 2, 3]

    run(main())


def test_all_who_wait_learn_that_nobody_is_there(prefix: str) -> None:
    async def main() -> None:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            url = f"redis://127.0.0.1:{closed.getsockname()[1]}"
        async with RedisBackend(url, prefix=prefix, publish_timeout=0.1) as queue:
            calls = (queue.publish("a", {"n": n}) for n in range(5))
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert all(isinstance(result, ConnectionLostError) for result in results)

    run(main())


def test_a_master_that_was_demoted_is_left(
    server: RedisServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main(demoted: RedisServer) -> None:
        async with RedisBackend(demoted.url, prefix=prefix) as queue, client(demoted.url) as raw:
            await queue.publish("a", {"n": 0})
            await raw.execute_command("REPLICAOF", "127.0.0.1", server.port)
            left = asyncio.Event()
            close = queue._publisher._link.aclose

            async def tell(**named: bool) -> None:
                await close(**named)
                left.set()

            monkeypatch.setattr(queue._publisher._link, "aclose", tell)
            publishing = asyncio.create_task(queue.publish("a", {"n": 1}))
            await left.wait()
            await raw.execute_command("REPLICAOF", "NO", "ONE")
            await publishing
            assert queue._publisher._link.opened > 1

    with RedisServer() as demoted:
        run(main(demoted))


def test_closing_waits_for_what_is_on_its_way(server: RedisServer, prefix: str) -> None:
    async def main() -> None:
        async with RedisBackend(server.url, prefix=prefix) as queue, client(server.url) as raw:
            await queue.publish("a", {"n": 0})
            await raw.execute_command("CLIENT", "PAUSE", 200)
            publishing = [asyncio.create_task(queue.publish("a", {"n": n})) for n in (1, 2)]
            await asyncio.sleep(0)
            await queue.aclose()
            await asyncio.gather(*publishing)
            assert await raw.xlen(f"{{{prefix}}}:messages") == 3

    run(main())


def test_closing_after_the_loop_has_ended(server: RedisServer, prefix: str) -> None:
    """What is cancelled with its loop leaves nothing behind that closing would wait for."""
    queue = RedisBackend(server.url, prefix=prefix)
    publishing: list[asyncio.Task[None]] = []

    async def main() -> None:
        await queue.publish("a", {})
        publishing.extend(asyncio.create_task(queue.publish("a", {"n": n})) for n in range(3))
        for _ in range(100):  # until the batch is on its way
            if queue._publisher._link._lock.locked():
                break
            await asyncio.sleep(0)

    run(main())
    assert all(call.cancelled() for call in publishing)
    run(queue.aclose())


def test_closing_ends_waiting_for_a_broker(server: RedisServer, prefix: str) -> None:
    async def main() -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        queue = RedisBackend(f"redis://127.0.0.1:{port}", prefix=prefix, publish_timeout=60.0)
        publishing = [asyncio.create_task(queue.publish("a", {"n": n})) for n in (1, 2)]
        await asyncio.sleep(0.1)
        await asyncio.wait_for(queue.aclose(), 5)
        for call in publishing:
            with pytest.raises(ConnectionLostError, match="cannot be reached"):
                await call

    run(main())


@pytest.mark.parametrize(
    "answer", ["LOADING Redis is loading", "BUSY Redis is busy", "CLUSTERDOWN Hash slot not served"]
)
def test_a_server_that_has_done_nothing_is_asked_again(prefix: str, answer: str) -> None:
    async def main() -> None:
        answers = [f"-{answer}\r\n".encode()] * 2 + [b":1\r\n"]
        served: set[asyncio.Task[Any]] = set()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            served.add(asyncio.current_task())  # type: ignore[arg-type]
            while line := await reader.readline():
                words = [b""] * int(line[1:])
                for n in range(len(words)):
                    words[n] = await reader.readexactly(int((await reader.readline())[1:]))
                    await reader.readline()
                writer.write(answers.pop(0) if words[0] == b"EVALSHA" else b"+OK\r\n")
            writer.close()

        listener = await asyncio.start_server(serve, "127.0.0.1", 0)
        url = f"redis://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        async with RedisBackend(url, prefix=prefix) as queue:
            await queue.publish("a", {})
        assert not answers
        listener.close()
        await asyncio.wait(served, timeout=10)

    run(main())
