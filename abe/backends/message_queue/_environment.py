"""What surrounds the creation of a backend: environment variables and standard output."""

from __future__ import annotations

import inspect
import os
import sys
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from abe._redact import Variables
from abe.errors import ConfigurationError

if TYPE_CHECKING:
    from abe.backends.message_queue.base.settings import Setting

__all__ = [
    "checked_overlay",
    "declared_settings",
    "off_standard_output",
    "overlaid",
    "read_variable",
    "refuse_unknown",
    "unread",
]

_locks: dict[int, threading.RLock] = {}
_replaced: dict[int, list[dict[str, str | None]]] = {}
"""What the overlays of each thread have replaced."""


def _lock() -> threading.RLock:
    """Return the lock that whatever reads the environment on behalf of a backend holds.

    The overlay of one thread must not configure the backend of another. Re-entrant, because a
    ``from_env()`` may load a backend; one for each process, because a fork may leave it locked,
    and the overlay of a thread that is not there any more with it.
    """
    process = os.getpid()
    if process not in _locks:
        for thread in set(_replaced) - {threading.get_ident()}:
            for replaced in reversed(_replaced.pop(thread, [])):
                _restore(replaced)
    return _locks.setdefault(process, threading.RLock())


def _restore(replaced: Mapping[str, str | None]) -> None:
    for name, old in replaced.items():
        if old is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = old


if hasattr(os, "register_at_fork"):  # a fork waits for the overlays of other threads
    os.register_at_fork(before=lambda: _lock().acquire(), after_in_parent=lambda: _lock().release())


def checked_overlay(env: Mapping[str, str] | None) -> Variables:
    """Copy ``env``, refusing what the operating system would; the value is never shown."""
    overlay = Variables(env or {})
    items: Mapping[Any, Any] = overlay
    for name, value in items.items():
        if not isinstance(name, str) or not name or "=" in name or "\0" in name:
            raise ConfigurationError(f"env: {name!r} cannot be the name of a variable")
        if not isinstance(value, str):
            raise ConfigurationError(f"env[{name!r}] must be a str, not {type(value).__name__}")
        if "\0" in value:
            raise ConfigurationError(f"env[{name!r}] must not contain a null character")
    return overlay


def read_variable(name: str, overlay: Mapping[str, str]) -> str:
    """Return a variable of ``overlay``, else of the process, without white space around it."""
    with _lock():
        return (overlay[name] if name in overlay else os.environ.get(name, "")).strip()


@contextmanager
def overlaid(overlay: Mapping[str, str]) -> Iterator[None]:
    """Set variables for the duration, alone in the process; restore them whatever happens."""
    thread = threading.get_ident()
    with _lock():
        replaced: dict[str, str | None] = {}
        _replaced.setdefault(thread, []).append(replaced)
        try:
            for name, value in overlay.items():
                replaced[name] = os.environ.get(name)
                os.environ[name] = value
            yield
        finally:
            _replaced[thread].pop()
            _restore(replaced)


class _Output:
    """Stands in for standard output: collects what some threads write, and passes on the rest."""

    def __init__(self, real: Any) -> None:
        self.real = real
        self.heard: dict[int, list[str]] = {}

    def write(self, text: str) -> int:
        heard = self.heard.get(threading.get_ident())
        if heard is None:
            return int(self.real.write(text) or 0)
        heard.append(text)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


_output_lock = threading.Lock()


@contextmanager
def off_standard_output() -> Iterator[list[str]]:
    """Collect what this thread prints: it would spoil the output of the program."""
    thread, heard = threading.get_ident(), list[str]()
    with _output_lock:
        output = sys.stdout if isinstance(sys.stdout, _Output) else _Output(sys.stdout)
        outer = output.heard.get(thread)
        output.heard[thread] = heard
        sys.stdout = output
    try:
        yield heard
    finally:
        with _output_lock:
            if outer is None:
                del output.heard[thread]
            else:
                output.heard[thread] = outer
            if not output.heard and sys.stdout is output:
                sys.stdout = output.real


def declared_settings(backend_class: type) -> tuple[Setting, ...]:
    """Return the variables that a class declares; none where ``from_env`` may read others."""
    from abe.backends.message_queue.base import Setting

    for owner in inspect.getmro(backend_class):
        settings = vars(owner).get("settings")
        if isinstance(settings, tuple) and all(isinstance(it, Setting) for it in settings):
            return settings
        if "from_env" in vars(owner):  # of a subclass, which may read anything
            break
    return ()


def refuse_unknown(
    backend: str, settings: Sequence[Setting], overlay: Mapping[str, str], others: Collection[str]
) -> None:
    """Refuse variables of ``env=`` that the backend would not read.

    Those of other installed backends pass, because a ``from_env`` may load one; so do the ones that
    the process has with the same value, and whole families such as ``AWS_``.
    """
    read = {setting.name for setting in settings} | {"QUEUE_BACKEND"}
    families = {_family(name) for name in read if not name.startswith("ABE_")}
    families |= {prefix for other in others if (prefix := _prefix(other)) != _prefix(backend)}
    for name, value in overlay.items():
        if name in read or os.environ.get(name) == value or name.startswith(tuple(families)):
            continue
        raise ConfigurationError(
            f"env: backend {backend!r} does not read {name}{_nearest(name, read)}"
        )


def unread(backend: str, settings: Sequence[Setting]) -> list[str]:
    """Return the process's variables with the backend's prefix that it does not read, each once."""
    read = {setting.name for setting in settings}
    with _lock():
        found = {n for n in os.environ if n.startswith(_prefix(backend))} - read - _told
        _told.update(found)
    return [f"{name}{_nearest(name, read)}" for name in sorted(found)]


_told: set[str] = set()


def _prefix(backend: str) -> str:
    return f"ABE_{backend.replace('-', '_').upper()}_"


def _family(variable: str) -> str:
    return variable.partition("_")[0] + "_"


def _nearest(name: str, read: Collection[str]) -> str:
    import difflib

    near = difflib.get_close_matches(name, read, n=1, cutoff=0.8)
    return f"; did you mean {near[0]}?" if near else f"; it reads {', '.join(sorted(read))}"
