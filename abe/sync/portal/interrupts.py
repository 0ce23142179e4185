"""Ctrl-C while the main thread waits for the portal."""

from __future__ import annotations

import asyncio
import signal
import threading
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

__all__ = ["Interrupts"]


class Interrupts:
    """Takes over SIGINT for one wait of the main thread; does nothing in other threads.

    The handler that was there decides: what it raises is kept in `raised`, and the first time
    ``cancel`` is called instead of raising at once, so that the outcome can be awaited. A second
    signal raises at once. A handler that returns (a service's own "stop soon") leaves the wait
    alone, and ignored signals stay ignored.
    """

    __slots__ = ("_cancel", "_previous", "raised")

    def __init__(self, cancel: Callable[[], object]) -> None:
        self._cancel = cancel
        self._previous: Callable[[int, FrameType | None], Any] | None = None
        self.raised: BaseException | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            previous = signal.getsignal(signal.SIGINT)
            if callable(previous):
                self._previous = previous
                signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def missed(self) -> bool:
        """Whether the interrupt came just before this wait, and would only be acted on after it.

        ipykernel's handler for cells that contain ``await`` leaves the interrupt to the event loop,
        which does not run while its thread waits here.
        """
        if self._previous in (None, signal.default_int_handler):
            return False
        if not _only_cancels_a_task(self._previous):
            return False
        for handle in tuple(getattr(asyncio._get_running_loop(), "_ready", ())):
            if handle not in _answered and _comes_from_ipykernel(handle):
                _answered.add(handle)
                return True
        return False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        assert self._previous is not None
        try:
            if _only_cancels_a_task(self._previous):
                raise KeyboardInterrupt
            self._previous(number, frame)
        except BaseException as error:
            if self.raised is not None:
                raise
            if isinstance(error, KeyboardInterrupt):
                error.__traceback__ = None  # the caller's frames are what matters
            self.raised = error
            self._cancel()


_answered: weakref.WeakSet[asyncio.Handle] = weakref.WeakSet()
"""Interrupts that have been acted on although their event loop has not seen them yet."""


def _comes_from_ipykernel(handle: asyncio.Handle) -> bool:
    arguments = getattr(handle, "_args", None) or ()
    functions = (getattr(argument, "func", argument) for argument in arguments)
    return any(getattr(f, "__name__", "") == "set_sigint_result" for f in functions)


def _only_cancels_a_task(handler: object) -> bool:
    """Whether ``handler`` would only cancel a task of the very loop that our caller blocks.

    ipykernel does so for cells that contain ``await``, `asyncio.Runner` for everything it runs.
    """
    module = getattr(getattr(handler, "func", handler), "__module__", None) or ""
    return module == "asyncio.runners" or module.partition(".")[0] == "ipykernel"
