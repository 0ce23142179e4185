"""Process identity: state of one process, threads that cannot start, objects that stay here.

A fork made by C code runs none of Python's at-fork hooks, so process ids are compared instead. On
Linux the kernel tells of a fork by wiping a page, which costs less than asking for the id.
"""

from __future__ import annotations

import mmap
import os
import sys
import threading
from collections.abc import Callable
from typing import Any, Generic, NoReturn, SupportsIndex, TypeVar

from abe.errors import ConnectionLostError, LoopError

__all__ = ["PerProcess", "Unshareable", "fork_error", "identity", "start_thread"]

T = TypeVar("T")

WIPE_ON_FORK = 18
"""MADV_WIPEONFORK of Linux 4.14 and newer, which `mmap` does not name."""


class _Identity:
    """Which process this is.

    Attributes:
        unforked: Its first item is true while `known` is this process; elsewhere than on Linux it
            is never true.
        known: The process id that was found last.
    """

    def __init__(self) -> None:
        self.known = os.getpid()
        self.unforked: bytes | mmap.mmap = b"\0"
        if sys.platform == "linux":
            page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            try:
                page.madvise(WIPE_ON_FORK)
            except OSError:  # an older kernel
                return
            page[0] = 1
            self._page = self.unforked = page

    def pid(self) -> int:
        if not self.unforked[0]:
            self.known = os.getpid()
            if self.unforked != b"\0":
                self._page[0] = 1
        return self.known


identity = _Identity()


class PerProcess(Generic[T]):
    """A value that every process makes for itself; a child never sees its parent's."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._values: dict[int, T] = {}

    def get(self) -> T:
        """Return this process's value, the same in all of its threads."""
        process = identity.known if identity.unforked[0] else identity.pid()
        value = self._values.get(process)
        # No lock: a fork could leave it locked for ever. `setdefault` is atomic.
        return self._values.setdefault(process, self._make()) if value is None else value

    def adopt(self, value: T) -> None:
        """Make ``value``, a copy of the parent's, this process's own."""
        self._values[identity.pid()] = value

    def inherited(self) -> list[T]:
        return [value for process, value in self._values.items() if process != identity.pid()]


class Unshareable:
    """Refuses to be copied and pickled: it owns a connection, which has one owner."""

    __slots__ = ()

    def __reduce_ex__(self, protocol: SupportsIndex, /) -> NoReturn:
        name = type(self).__name__
        raise TypeError(
            f"{name} cannot be copied or pickled; call abe.connect() or abe.aconnect() where it "
            "is needed"
        )


def fork_error(what: str, process: int) -> LoopError:
    """Return the error for ``what`` when ``process``, where it was opened, is an ancestor."""
    return LoopError(
        f"{what} was opened in process {process}, before a fork, and cannot be used in its child "
        f"{identity.pid()}; open a new one there"
    )


def start_thread(function: Callable[[], Any], name: str) -> threading.Thread:
    """Start ``function`` on a new daemon thread and return the thread.

    Raises:
        ConnectionLostError: If none can be started now, as at a limit of processes.
    """
    thread = threading.Thread(target=function, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        raise ConnectionLostError(
            f"thread {name!r} cannot be started: {error}. Try again, or raise the limit of "
            "processes (ulimit -u, a container's pids limit)"
        ) from error
    return thread
