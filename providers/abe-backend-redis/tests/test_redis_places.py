"""Sentinel, Cluster and TLS, as far as loopback can show them."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio
from redis.crc import key_slot

from abe.errors import ConfigurationError, ConnectionLostError, PublishError
from abe_backend_redis.backend import RedisBackend
from abe_backend_redis.testing import RedisServer

CERTIFICATE = Path(__file__).with_name("tls") / "cert.pem"
KEY = Path(__file__).with_name("tls") / "key.pem"


@contextmanager
def sentinel(master: RedisServer, folder: Path) -> Iterator[int]:
    """Run a Sentinel that watches ``master`` as ``mymaster``; yields its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    settings = folder / "sentinel.conf"
    settings.write_text(
        f"port {port}\nbind 127.0.0.1\ndir {folder}\nrequirepass watch\n"
        f"sentinel monitor mymaster 127.0.0.1 {master.port} 1\n"
        "sentinel down-after-milliseconds mymaster 500\n"
    )
    process = subprocess.Popen(
        [master.program, settings, "--sentinel"], stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < deadline, "the Sentinel does not start"
                assert process.poll() is None, "the Sentinel has ended"
                time.sleep(0.02)
        yield port
    finally:
        process.kill()
        process.wait()


def test_sentinel_tells_the_master(server: RedisServer, prefix: str, tmp_path: Path) -> None:
    async def main(port: int) -> None:
        # The first of the two is not there: the second is asked.
        url = f"redis+sentinel://127.0.0.1:1,127.0.0.1:{port}/mymaster/0"
        async with (
            RedisBackend(url, prefix=prefix, sentinel_password="watch") as queue,
            queue.consume() as stream,
        ):
            await queue.publish("a", {"n": 1})
            assert await stream.take(1, timeout=5) == [{"n": 1}]
        async with RedisBackend(
            url.replace("mymaster", "unknown"),
            prefix=prefix,
            sentinel_password="watch",
            publish_timeout=0.2,
        ) as queue:
            with pytest.raises(ConnectionLostError, match="unknown"):
                await queue.publish("a", {})

    with sentinel(server, tmp_path) as port:
        asyncio.run(asyncio.wait_for(main(port), 30))


async def until(what: str, ask: Callable[[], Awaitable[bool]]) -> None:
    """Return once ``ask`` says so: servers tell nobody when they have got to know each other."""
    for _ in range(800):
        if await ask():
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{what}: not after 40 s")


def raw_client(port: int, **options: Any) -> Any:
    return redis.asyncio.Redis(port=port, **options)


@pytest.mark.timeout(120)
def test_failover(prefix: str, tmp_path: Path) -> None:
    """The master is killed, and what was replicated goes on where Sentinel says."""

    async def follow(master: RedisServer, replica: RedisServer) -> None:
        async with raw_client(replica.port) as follower:
            await follower.execute_command("REPLICAOF", "127.0.0.1", master.port)

            async def linked() -> bool:
                about = await follower.info("replication")
                return bool(about["master_link_status"] == "up")

            await until("the replica follows", linked)

    async def main(master: RedisServer, port: int) -> None:
        async with (
            raw_client(port, password="watch") as watch,
            raw_client(master.port) as leader,
            RedisBackend(
                f"redis+sentinel://127.0.0.1:{port}/mymaster/0",
                prefix=prefix,
                sentinel_password="watch",
                publish_timeout=40.0,
            ) as queue,
            queue.consume(prefetch=1) as stream,
        ):

            async def known() -> bool:
                return len(await watch.execute_command("SENTINEL", "REPLICAS", "mymaster")) == 1

            await until("the replica is known to Sentinel", known)
            await queue.publish_many([{"n": n} for n in range(3)], key="a")
            held = await anext(stream)
            assert await leader.wait(1, 20_000) == 1
            master.kill()
            try:
                await queue.publish("a", {"n": 3})
            except PublishError:  # sent on a connection that had just died
                await queue.publish("a", {"n": 3})
            await held.ack()
            assert [(await anext(stream))["n"] for _ in range(3)] == [1, 2, 3]

    with RedisServer() as master, RedisServer() as replica:
        asyncio.run(follow(master, replica))
        with sentinel(master, tmp_path) as port:
            asyncio.run(asyncio.wait_for(main(master, port), 100))


@pytest.mark.timeout(120)
def test_a_slot_that_moves(prefix: str) -> None:
    """Keys go to another node one by one: everybody waits, and nothing is lost or refused."""

    async def main(old: RedisServer, new: RedisServer) -> None:
        async with raw_client(old.port) as source, raw_client(new.port) as target:
            await source.execute_command("CLUSTER", "ADDSLOTS", *range(16_384))
            await target.execute_command("CLUSTER", "SET-CONFIG-EPOCH", 2)
            await source.execute_command("CLUSTER", "MEET", "127.0.0.1", new.port)

            async def agreed() -> bool:
                told = [await node.execute_command("CLUSTER", "INFO") for node in (source, target)]
                return all(
                    b"cluster_state:ok" in it and b"cluster_known_nodes:2" in it for it in told
                )

            await until("the nodes know each other", agreed)
            urls = f"127.0.0.1:{old.port},127.0.0.1:{new.port}"
            async with (
                RedisBackend(
                    f"redis+cluster://{urls}", prefix=prefix, publish_timeout=40.0
                ) as queue,
                queue.consume() as stream,
            ):
                await queue.publish_many([(f"k.{n % 3}", {"n": n}) for n in range(6)])
                first = await anext(stream)
                slot = key_slot(f"{{{prefix}}}:log".encode())
                ids = [await node.execute_command("CLUSTER", "MYID") for node in (source, target)]
                await target.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
                await source.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
                publishing = asyncio.create_task(queue.publish("another", {"n": 6}))
                await first.release()
                while keys := await source.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 1):
                    await source.execute_command(
                        "MIGRATE", "127.0.0.1", new.port, "", 0, 5000, "KEYS", *keys
                    )
                for node in (target, source):
                    await node.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[1])
                await publishing
                taken = await stream.take(7, timeout=40)
                assert sorted(message["n"] for message in taken) == [*range(7)]

    options = {"cluster-enabled": "yes"}
    with RedisServer(options=options) as old, RedisServer(options=options) as new:
        asyncio.run(asyncio.wait_for(main(old, new), 100))


def test_tls(server: RedisServer, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wheels' servers are built without TLS: a proxy speaks it for them."""

    async def main() -> None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(CERTIFICATE, KEY)

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            back, out = await asyncio.open_connection("127.0.0.1", server.port)
            ends = [asyncio.create_task(pipe(reader, out)), asyncio.create_task(pipe(back, writer))]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for end in (out, writer):
                end.transport.abort()
            await asyncio.wait(ends)

        listener = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
        port = listener.sockets[0].getsockname()[1]
        monkeypatch.setenv("ABE_REDIS_URL", f"rediss://127.0.0.1:{port}/0")
        monkeypatch.setenv("ABE_REDIS_PREFIX", prefix)
        async with RedisBackend.from_env() as queue:
            for call in (
                queue.publish("a", {}),
                queue.peek(),
                queue.ping(),
                anext(queue.consume()),
            ):
                with pytest.raises(ConfigurationError, match="ABE_REDIS_TLS_CA"):
                    await asyncio.wait_for(call, 5)
        monkeypatch.setenv("ABE_REDIS_TLS_CA", str(CERTIFICATE))
        async with RedisBackend.from_env() as queue, queue.consume() as stream:
            await queue.publish("a", {"n": 1})
            assert await stream.take(1, timeout=5) == [{"n": 1}]
        listener.close()

    asyncio.run(asyncio.wait_for(main(), 30))


async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
