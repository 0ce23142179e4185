"""The environment while a backend is created: an overlay, and errors without its values."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from abe.errors import ConfigurationError

__all__ = ["checked_overlay", "overlaid", "presentable", "read_variable"]

_SENSITIVE = re.compile(r"^ABE_|PASS|SECRET|TOKEN|KEY|CREDENTIAL|AUTH|DSN|UR[IL]", re.IGNORECASE)

_locks: dict[int, threading.RLock] = {}


def _lock() -> threading.RLock:
    """Return the lock that whatever reads the environment on behalf of a backend holds.

    The overlay of one thread must not configure the backend of another. Re-entrant, because a
    ``from_env()`` may load a backend; one for each process, because a fork may leave it locked.
    """
    return _locks.setdefault(os.getpid(), threading.RLock())


if hasattr(os, "register_at_fork"):  # a child must not inherit half an overlay
    os.register_at_fork(before=lambda: _lock().acquire(), after_in_parent=lambda: _lock().release())


def checked_overlay(env: Mapping[str, str] | None) -> dict[str, str]:
    """Copy ``env``, refusing what the operating system would; the value is never shown."""
    overlay: dict[Any, Any] = dict(env or {})
    for name, value in overlay.items():
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
    with _lock():
        before: dict[str, str | None] = {}
        try:
            for name, value in overlay.items():
                before[name] = os.environ.get(name)
                os.environ[name] = value
            yield
        finally:
            for name, old in before.items():
                if old is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = old


def presentable(error: Exception, overlay: Mapping[str, str]) -> tuple[Exception, str]:
    """Return ``error`` fit for chaining, and its text, without any value of the environment.

    Drivers like to quote the URL that they could not parse, password included.
    """
    import traceback

    # limit=0: no source lines, but every chained exception, note and member of a group.
    whole = "".join(traceback.format_exception(error, limit=0))
    hidden = _hidden_values(overlay)
    text = _redacted(f"{type(error).__name__}: {error}".removesuffix(": "), hidden)
    if _redacted(whole, hidden) == whole:
        return error, text
    stand_in = RuntimeError(f"{text} (values of environment variables are replaced by ***)")
    return stand_in.with_traceback(error.__traceback__), text


def _redacted(text: str, hidden: Sequence[str]) -> str:
    for value in hidden:
        text = text.replace(value, "***")
    return text


def _hidden_values(overlay: Mapping[str, str]) -> list[str]:
    """Return what must not appear in an error, the longest first."""
    from urllib.parse import unquote, urlsplit

    values = {v for n, v in overlay.items() if n != "QUEUE_BACKEND"}
    with _lock():
        values |= {v for n, v in os.environ.items() if _SENSITIVE.search(n)}
    for value in tuple(values):
        values.add(repr(value)[1:-1])
        with suppress(ValueError):
            password = urlsplit(value).password
            values |= {password, unquote(password)} if password else set()
    # A flag or a database number is no secret, and replacing it would garble the text.
    return sorted((v for v in values if len(v) > 3), key=len, reverse=True)
