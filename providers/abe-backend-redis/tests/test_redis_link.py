"""A connection that is closed while somebody opens it, or still wants it, is not left behind."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from abe.errors import ConnectionLostError
from abe_backend_redis.failures import Translator
from abe_backend_redis.link import Link
from abe_backend_redis.server import Server


class SlowServer:
    """Connections that open when told to."""

    def __init__(self) -> None:
        self.translator = Translator("h:1", None)
        self.may_open = asyncio.Event()
        self.asked = asyncio.Event()
        self.open = 0

    async def connection(self, log: str, timeout: float, heard: object) -> Any:
        return self

    async def connect(self) -> None:
        self.asked.set()
        await self.may_open.wait()
        self.open += 1

    async def disconnect(self, nowait: bool = False) -> None:
        self.open -= 1

    async def send_packed_command(self, packed: bytes, check_health: bool) -> None: ...

    async def read_response(self, disable_decoding: bool) -> bytes:
        return b"PONG"


def test_closed_while_it_opens() -> None:
    async def main() -> None:
        server = SlowServer()
        link = Link(cast("Server", server), "log", 5.0)
        connecting = asyncio.create_task(link.call("PING"))
        await server.asked.wait()
        await link.aclose()
        server.may_open.set()
        with pytest.raises(ConnectionLostError, match="closed"):
            await connecting
        assert server.open == 0
        await link.call("PING")
        assert server.open == 1

    asyncio.run(main())


def test_closed_for_good() -> None:
    """Also for a call that waited for its turn meanwhile."""

    async def main() -> None:
        server = SlowServer()
        link = Link(cast("Server", server), "log", 5.0)
        calls = [asyncio.create_task(link.call("PING")) for _ in range(2)]
        await server.asked.wait()
        await link.aclose(for_good=True)
        server.may_open.set()
        for call in calls:
            with pytest.raises(ConnectionLostError, match="closed"):
                await call
        assert server.open == 0

    asyncio.run(main())
