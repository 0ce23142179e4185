"""The portal of this process: started when first needed, closed at exit, never inherited."""

from __future__ import annotations

import atexit
import sys
import threading

from abe.backends.message_queue.base.process import PerProcess
from abe.errors import BackendClosedError
from abe.sync.portal.browser import BrowserPortal
from abe.sync.portal.protocol import Portal
from abe.sync.portal.thread import ThreadPortal

__all__ = ["get_portal"]


class _Process:
    """What one process has: at most one portal, and none once it exits."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.portal: Portal | None = None
        self.exiting = False


_this = PerProcess(_Process)


def get_portal() -> Portal:
    """Return the portal of this process, starting it if need be."""
    this = _this.get()
    portal = this.portal
    if portal is not None:
        return portal
    with this.lock:
        if this.exiting:
            raise BackendClosedError("abe cannot be used any more: the interpreter is exiting")
        if this.portal is None:
            this.portal = BrowserPortal() if sys.platform == "emscripten" else ThreadPortal()
            _close_with_child_process()
        return this.portal


def _close_at_exit() -> None:
    this = _this.get()
    with this.lock:
        portal, this.portal, this.exiting = this.portal, None, True
    if portal is not None:
        portal.close()


def _close_with_child_process() -> None:
    """Children of `multiprocessing` leave without running what is registered with `atexit`."""
    if "multiprocessing.util" in sys.modules:
        from multiprocessing import parent_process, util

        if parent_process() is not None:
            util.Finalize(None, _close_at_exit, exitpriority=0)


atexit.register(_close_at_exit)
