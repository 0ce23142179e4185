"""Helpers shared by the tests of the message stream."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from abe.errors import ConnectionLostError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    import pytest

    from abe.backends.message_queue.base import Message, MessageStream

LEASE = 30.0
RESET = ConnectionLostError("connection reset by the script")


def now() -> float:
    return asyncio.get_running_loop().time()


async def breathe() -> None:
    """Let everything that can happen now happen."""
    for _ in range(20):
        await asyncio.sleep(0)


async def several(stream: MessageStream, count: int) -> list[Message]:
    """Ask for one message after the other."""
    return [await anext(stream) for _ in range(count)]


def warned(caplog: pytest.LogCaptureFixture, text: str) -> list[logging.LogRecord]:
    return [r for r in caplog.records if r.levelno == logging.WARNING and text in r.getMessage()]


def ask_with_timeout(stream: MessageStream, seconds: float) -> Coroutine[Any, Any, Message]:
    async def ask() -> Message:
        async with asyncio.timeout(seconds):
            return await anext(stream)

    return ask()


def call(stream: MessageStream, method: str) -> Awaitable[object]:
    methods: dict[str, Callable[[], Awaitable[object]]] = {
        "anext": lambda: anext(stream),
        "take": lambda: stream.take(1),
        "enter": stream.__aenter__,
        "exit": lambda: stream.__aexit__(None, None, None),
    }
    return methods.get(method, getattr(stream, method, None) or stream.flush)()
