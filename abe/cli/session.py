"""The backend that a command names, and the end of a command by SIGTERM."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

from abe.cli.output import say

Backend = TypeVar("Backend")


class Terminated(KeyboardInterrupt):
    """SIGTERM came; it ends a command as Ctrl-C does, with another exit status."""


def terminate(signum: int, frame: object) -> None:
    """Handle SIGTERM."""
    raise Terminated


class Target(NamedTuple):
    """A backend's name, ``None`` to choose as `abe.load_backend` does, and its variables."""

    name: str | None
    env: Mapping[str, str]

    def open(self, connect: Callable[..., Backend]) -> Backend:
        """Create the backend with `abe.connect` or `abe.aconnect`; each warning is one line."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            backend = connect(self.name, env=self.env or None)
        for warning in caught:
            if issubclass(warning.category, UserWarning | FutureWarning):
                say(f"abe: warning: {warning.message}")
        return backend


def search_working_directory() -> str:
    """Have modules found in the working directory, before others, and return it."""
    where = str(Path.cwd())
    if where not in sys.path:
        sys.path.insert(0, where)
    return where
