"""Interrupts that come just before a call of the facade begins to wait."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from functools import partial
from types import FrameType
from typing import Any

import pytest

from abe.sync.portal import get_portal
from abe.sync.portal.operation import Operation
from abe.sync.portal.thread import ThreadPortal


@pytest.fixture(autouse=True)
def _interrupts_are_not_ignored() -> Iterator[None]:
    """As they are where a shell has started the tests in the background."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


async def answer() -> int:
    return 42


def test_between_the_handler_and_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is nothing to cancel yet, so it has to be cancelled once it is started."""
    begin = ThreadPortal._begin

    def interrupted_begin(self: ThreadPortal, operation: Operation[Any], *more: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        begin(self, operation, *more)

    monkeypatch.setattr(ThreadPortal, "_begin", interrupted_begin)
    with pytest.raises(KeyboardInterrupt):
        get_portal().call(asyncio.sleep(60))
    monkeypatch.undo()
    assert get_portal().call(answer()) == 42


def test_before_the_call_in_a_cell_that_contains_await() -> None:
    """ipykernel leaves it to an event loop that the call then blocks."""
    noticed: list[str] = []

    def set_sigint_result() -> None:
        noticed.append("by the loop")

    async def cell() -> None:
        loop = asyncio.get_running_loop()

        def handle_sigint(number: int, frame: FrameType | None) -> None:
            callback = partial(set_sigint_result)
            loop.call_soon_threadsafe(lambda run: run(), callback)

        handle_sigint.__module__ = "ipykernel.ipkernel"
        previous = signal.signal(signal.SIGINT, handle_sigint)
        try:
            assert get_portal().call(answer()) == 42
            signal.raise_signal(signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                get_portal().call(asyncio.sleep(60))
            assert get_portal().call(answer()) == 42  # cleaning up is possible
            assert noticed == []
        finally:
            signal.signal(signal.SIGINT, previous)

    asyncio.run(cell())
    assert noticed == ["by the loop"]
