"""Ask for secrets without showing them."""

from __future__ import annotations

import getpass
import warnings
from collections.abc import Iterable

from abe._redact import Variables
from abe.errors import ConfigurationError


def ask_missing(variables: Iterable[tuple[str, str | None]]) -> Variables:
    """Return environment variables, after asking for values that are missing, without echo."""
    return Variables((n, _ask(n) if value is None else value) for n, value in variables)


def _ask(name: str) -> str:
    try:
        with warnings.catch_warnings():
            # getpass would fall back to showing what is typed.
            warnings.simplefilter("error", getpass.GetPassWarning)
            return getpass.getpass(f"{name}: ")
    except (EOFError, NotImplementedError, getpass.GetPassWarning):
        raise ConfigurationError(
            f"--env {name} asks for the value, but no input is available here; "
            f"set {name} in the environment"
        ) from None
