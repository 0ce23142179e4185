"""Each test has a memory store of its own, in real time."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from abe.backends.message_queue.service.memory import MemoryBackend

_names = (f"unit.{n}" for n in itertools.count())


@pytest.fixture
def settings() -> dict[str, Any]:
    """Arguments of the backend; parametrize a test to change them."""
    return {}


@pytest.fixture
def backend(settings: dict[str, Any]) -> MemoryBackend:
    """A backend on a store that no other test uses."""
    return MemoryBackend(next(_names), **settings)


@pytest.fixture
def run(backend: MemoryBackend) -> Callable[[Coroutine[Any, Any, None]], None]:
    """Run a test and close its backend."""

    async def body(test: Coroutine[Any, Any, None]) -> None:
        async with backend:
            await test

    return lambda test: asyncio.run(body(test))
