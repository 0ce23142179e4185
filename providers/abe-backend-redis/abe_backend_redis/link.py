"""One connection, used for one call at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import hiredis
from redis.exceptions import NoScriptError, RedisError, ResponseError

from abe.errors import ConfigurationError, ConnectionLostError
from abe_backend_redis.failures import UnreachedError

if TYPE_CHECKING:
    from redis.asyncio.connection import AbstractConnection

    from abe_backend_redis.scripts import Script
    from abe_backend_redis.server import Server

__all__ = ["Link"]

# Its type hints want a tuple of one.
pack_command: Callable[[tuple[str | bytes | int, ...]], bytes] = hiredis.pack_command  # type: ignore[assignment]

IDLE = 0.5
"""Seconds without use after which a connection may have been closed by the other side unnoticed."""


class Link:
    """A connection that opens when first used, and again after it was lost.

    A call that does not get its answer closes the connection, so that an answer never meets
    another call.

    Args:
        server: Where to connect.
        log: The namespace's index key: the first key of every script.
        timeout: Seconds for connecting, and for each answer.
    """

    def __init__(self, server: Server, log: str, timeout: float) -> None:
        self._server = server
        self._log = log
        self._timeout = timeout
        self._connection: AbstractConnection | None = None
        self._lock = asyncio.Lock()
        self._used = 0.0
        self._closings = 0
        self._ended = False
        self.opened = 0
        """How many connections there have been: which one it is now."""

    async def call(self, *command: str | bytes | int, wait: float = 0.0) -> Any:
        """Send a command and return its answer, undecoded.

        Args:
            command: Its name and arguments.
            wait: Seconds for which the server may hold back the answer.

        Raises:
            UnreachedError: If there is no connection, or Redis cannot do it now.
            ConnectionLostError: If there is no answer.
            AbeError: If Redis answers with an error.
        """
        async with self._lock:
            connection = await self._ready()
            try:
                return await self._exchange(connection, pack_command(command), wait)
            except ResponseError as error:
                raise await self._failure(error) from error

    async def run(self, script: Script, *args: str | bytes | int) -> Any:
        """Run a script on the namespace and return its answer, undecoded."""
        async with self._lock:
            connection = await self._ready()
            packed = pack_command(("EVALSHA", script.sha, 1, self._log, *args))
            try:
                try:
                    return await self._exchange(connection, packed)
                except NoScriptError:
                    await self._exchange(connection, pack_command(("SCRIPT", "LOAD", script.text)))
                    return await self._exchange(connection, packed)
            except ResponseError as error:
                raise await self._failure(error) from error

    @property
    def connected(self) -> bool:
        """Whether there is a connection, as far as is known."""
        return self._connection is not None

    async def aclose(self, *, for_good: bool = False) -> None:
        """Close the connection; the next call opens a new one, or fails if this is for good."""
        self._ended |= for_good
        self._closings += 1
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):
                await connection.disconnect()

    async def _ready(self) -> AbstractConnection:
        now = asyncio.get_running_loop().time()
        if self._connection is not None and now - self._used > IDLE:
            await self._probe(self._connection)
        self._used = now
        if self._connection is None:
            if self._ended:
                raise UnreachedError(f"Redis at {self._server}: the connection was closed")
            closings = self._closings
            connection = await self._open()
            if closings != self._closings:
                with suppress(Exception):
                    await connection.disconnect(nowait=True)
                raise UnreachedError(f"Redis at {self._server}: the connection was closed")
            self._connection = connection
        return self._connection

    async def _probe(self, connection: AbstractConnection) -> None:
        """Drop a connection that the server has closed meanwhile: nothing was sent on it yet."""
        try:
            stale = await connection.can_read()
        except RedisError:
            stale = True
        if stale:
            await self.aclose()

    async def _open(self) -> AbstractConnection:
        connection = None
        try:
            async with asyncio.timeout(self._timeout):
                connection = await self._server.connection(self._log, self._timeout)
                await connection.connect()  # type: ignore[no-untyped-call]
        except ConfigurationError:
            raise
        except BaseException as error:
            if connection is not None:
                with suppress(Exception):
                    await connection.disconnect(nowait=True)
            if not isinstance(error, Exception):
                raise
            if isinstance(error, TimeoutError) and not str(error):
                error = TimeoutError(f"no connection within {self._timeout:g} s")
            failure = self._server.translator.translate(error, str(self._server), sent=False)
            raise failure from error
        self.opened += 1
        return connection

    async def _exchange(
        self, connection: AbstractConnection, packed: bytes, wait: float = 0.0
    ) -> Any:
        try:
            async with asyncio.timeout(self._timeout + wait):
                await connection.send_packed_command(packed, check_health=False)
                return await connection.read_response(disable_decoding=True)
        except ResponseError:
            raise
        except BaseException as error:
            self._connection = None
            with suppress(Exception):
                await connection.disconnect(nowait=True)
            if not isinstance(error, Exception):
                raise
            if isinstance(error, TimeoutError) and not str(error):
                error = TimeoutError(f"no answer within {self._timeout + wait:g} s")
            raise self._server.translator.translate(error, str(self._server)) from error

    async def _failure(self, error: ResponseError) -> Exception:
        failure = self._server.translator.translate(error, str(self._server))
        if isinstance(failure, ConnectionLostError):
            await self.aclose()
        return failure
