"""The portal of browsers, with a stand-in for Pyodide: the real one cannot run here."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import abe
from abe.backends.message_queue.base.process import PerProcess
from abe.sync.portal import process as portal_module
from abe.sync.portal.browser import BrowserPortal


@pytest.fixture
def browser(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Emscripten, with an event loop that ``run_sync`` drives as a stack switch would."""
    loop = asyncio.new_event_loop()
    state = SimpleNamespace(can_run_sync=True, loop=loop)
    ffi = ModuleType("pyodide.ffi")
    ffi.can_run_sync = lambda: state.can_run_sync  # type: ignore[attr-defined]
    ffi.run_sync = loop.run_until_complete  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pyodide", ModuleType("pyodide"))
    monkeypatch.setitem(sys.modules, "pyodide.ffi", ffi)
    monkeypatch.setattr(portal_module, "_this", PerProcess(portal_module._Process))
    monkeypatch.setattr(asyncio, "get_event_loop", lambda: loop)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "emscripten")
        assert isinstance(portal_module.get_portal(), BrowserPortal)
    yield state
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


def connect() -> abe.SyncBackend:
    return abe.connect("memory", env={"ABE_MEMORY_NAME": "browser"})


def test_calls_block_where_the_browser_can_suspend(browser: SimpleNamespace) -> None:
    """Without any thread."""
    with connect() as queue:
        queue.publish("orders", {"n": 1})
        assert queue.take() == [{"n": 1}]
        queue.publish_many([{"n": n} for n in range(3)], key="orders")
        assert [m["n"] for m in queue.consume(limit=3)] == [0, 1, 2]
    with ThreadPoolExecutor(1) as pool:  # not the process's portal thread
        assert pool.submit(lambda: queue._pool.portal.loop is browser.loop).result()


def test_calls_say_to_await_where_it_cannot(browser: SimpleNamespace) -> None:
    """And awaiting works."""
    browser.can_run_sync = False
    queue = connect()
    with pytest.raises(abe.LoopError, match=r"await q\.aio"):
        queue.publish("orders", {"n": 1})

    async def cell() -> list[Any]:
        await queue.aio.publish("orders", {"n": 1})
        async with queue.aio.consume() as stream:
            taken = await stream.take(1)
        await queue.aio.aclose()
        return taken

    assert browser.loop.run_until_complete(cell()) == [{"n": 1}]
