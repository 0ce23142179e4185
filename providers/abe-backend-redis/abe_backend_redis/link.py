"""One connection, used for one call at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import hiredis
from redis.exceptions import NoScriptError, ResponseError

from abe.backends.message_queue.base import log
from abe.errors import ConfigurationError, ConnectionLostError
from abe_backend_redis.failures import UnreachedError
from abe_backend_redis.scripts import MIGRATE, Script

if TYPE_CHECKING:
    from redis.asyncio.connection import AbstractConnection

    from abe_backend_redis.server import Server

__all__ = ["Link"]

logger = logging.getLogger(__name__)

# Its type hints want a tuple of one.
pack_command: Callable[[tuple[str | bytes | int, ...]], bytes] = hiredis.pack_command  # type: ignore[assignment]

OLD_FORMAT = "FORMAT 1"
"""Scripts say so of a namespace that an earlier version has written."""
IDLE = 0.5
"""Seconds without use after which a connection is asked whether it still works before it is used: a
firewall or load balancer may have dropped it without a word."""
HEALTH = 1.0
"""Seconds for the answer to that."""
SLOWEST = 50_000
"""Bytes a second that a command may take to be sent, beyond the time for its answer."""


class Link:
    """A connection that opens when first used, and again after it was lost.

    A call that does not get its answer closes the connection, so that an answer never meets
    another call. ``timeout`` is for connecting, and for the silence before an answer begins or
    goes on: a large one over a slow connection takes longer. ``log``, the first key of every
    script, tells the format of the namespace.
    """

    def __init__(self, server: Server, log: str, timeout: float) -> None:
        self._server = server
        self._log = log
        self._timeout = timeout
        self._connection: AbstractConnection | None = None
        self._limit: asyncio.Timeout | None = None
        self._lock = asyncio.Lock()
        self._used = 0.0
        self._closings = 0
        self._ended = False
        self.opened = 0
        """How many connections there have been: which one it is now."""

    async def call(self, *command: str | bytes | int, limit: float | None = None) -> Any:
        """Send a command and return its answer, undecoded; it must begin within ``limit`` seconds.

        Raises:
            UnreachedError: If there is no connection, or Redis cannot do it now.
            ConnectionLostError: If there is no answer.
            AbeError: If Redis answers with an error.
        """
        async with self._lock:
            connection = await self._ready()
            try:
                return await self._exchange(connection, pack_command(command), limit)
            except ResponseError as error:
                raise await self._failure(error) from error

    async def run(self, script: Script, *args: str | bytes | int) -> Any:
        async with self._lock:
            connection = await self._ready()
            try:
                try:
                    answer = await self._evaluate(connection, script, args)
                except ResponseError as error:
                    if str(error) != OLD_FORMAT:
                        raise
                    text = "Redis: the messages under %s are converted"
                    log(logger, logging.WARNING, text, self._log)
                    while not await self._evaluate(connection, MIGRATE, ("", 500)):
                        pass
                    answer = await self._evaluate(connection, script, args)
            except ResponseError as error:
                raise await self._failure(error) from error
            self._server.translator.served = True
            return answer

    async def _evaluate(
        self, connection: AbstractConnection, script: Script, args: Sequence[str | bytes | int]
    ) -> Any:
        packed = pack_command(("EVALSHA", script.sha, 1, self._log, *args))
        try:
            return await self._exchange(connection, packed)
        except NoScriptError:
            await self._exchange(connection, pack_command(("SCRIPT", "LOAD", script.text)))
            return await self._exchange(connection, packed)

    @property
    def connected(self) -> bool:
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
        if self._connection is not None and asyncio.get_running_loop().time() - self._used > IDLE:
            with suppress(ConnectionLostError, ResponseError):
                await self._exchange(self._connection, pack_command(("PING",)), HEALTH)
        if self._connection is None:
            closed = UnreachedError(f"Redis at {self._server}: the connection was closed")
            if self._ended:
                raise closed
            closings = self._closings
            connection = await self._open()
            if closings != self._closings:
                with suppress(Exception):
                    await connection.disconnect(nowait=True)
                raise closed
            self._connection = connection
        return self._connection

    async def _open(self) -> AbstractConnection:
        connection = None
        try:
            async with asyncio.timeout(self._timeout):
                connection = await self._server.connection(self._log, self._timeout, self._heard)
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
            failure = self._server.translator.translate(error, sent=False)
            if isinstance(failure, UnreachedError):
                await self._server.check_tls()
            raise failure from error
        self.opened += 1
        return connection

    async def _exchange(
        self, connection: AbstractConnection, packed: bytes, limit: float | None = None
    ) -> Any:
        seconds = (self._timeout if limit is None else limit) + len(packed) / SLOWEST
        try:
            async with asyncio.timeout(seconds) as self._limit:
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
                error = TimeoutError(f"no answer within {seconds:g} s")
            raise self._server.translator.translate(error) from error
        finally:
            self._limit = None
            self._used = asyncio.get_running_loop().time()

    def _heard(self) -> None:
        """Let the time for an answer that arrives begin anew."""
        if self._limit is not None:
            self._limit.reschedule(asyncio.get_running_loop().time() + self._timeout)

    async def _failure(self, error: ResponseError) -> Exception:
        failure = self._server.translator.translate(error)
        if isinstance(failure, ConnectionLostError):
            await self.aclose()
        return failure
