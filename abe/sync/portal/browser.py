"""The portal where there are no threads: Python in a browser (Pyodide, emscripten)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from importlib import import_module
from typing import Any, TypeVar

from abe.errors import BackendClosedError, LoopError

__all__ = ["BrowserPortal"]

T = TypeVar("T")


class BrowserPortal:
    """Runs everything on the browser's own event loop; implements `abe.sync.portal.Portal`.

    A call blocks by switching stacks (``pyodide.ffi.run_sync``), which only some browsers and
    entry points allow; elsewhere it says to use ``.aio``. The caller is suspended, not
    interrupted, so a result always reaches it and ``keep`` is never called.
    """

    def __init__(self) -> None:
        self.loop = asyncio.get_event_loop()
        self.closers: set[Callable[[], Coroutine[Any, Any, object]]] = set()
        self.threaded = False
        self.exiting = False
        self.refuses = False

    @property
    def forked(self) -> bool:
        return False

    @property
    def is_current(self) -> bool:
        return False

    def call(
        self, coroutine: Coroutine[Any, Any, T], *, keep: Callable[[T], object] | None = None
    ) -> T:
        __tracebackhide__ = True
        ffi = import_module("pyodide.ffi")
        if not ffi.can_run_sync():
            coroutine.close()
            raise LoopError(
                "blocking calls are not possible here: this browser, or the way this code was "
                "started, cannot suspend Python; use the awaitable view, e.g. "
                "'await q.aio.publish(…)'"
            )
        result: T = ffi.run_sync(coroutine)
        return result

    async def bridge(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return await coroutine

    def post(self, callback: Callable[..., object], *arguments: Any) -> bool:
        self.loop.call_soon(callback, *arguments)
        return True

    def post_from_finalizer(self, callback: Callable[..., object]) -> None:
        self.post(callback)

    def refusal(self) -> BaseException:
        return BackendClosedError("the backend is closed: the interpreter is exiting")

    def close(self, grace: float = 0.0) -> None:
        """Do nothing: the loop belongs to the browser."""
