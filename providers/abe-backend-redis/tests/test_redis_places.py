"""Sentinel and TLS, as far as loopback can show them."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from abe.errors import ConnectionLostError
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
        monkeypatch.setenv("ABE_REDIS_PUBLISH_TIMEOUT", "0.2")
        async with RedisBackend.from_env() as queue:
            with pytest.raises(ConnectionLostError, match="certificate"):
                await queue.publish("a", {})
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
