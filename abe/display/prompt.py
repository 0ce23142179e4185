"""Ask for a secret without showing it."""

from __future__ import annotations

import getpass
import warnings

from abe.errors import ConfigurationError

__all__ = ["ask_secret"]


def ask_secret(name: str) -> str:
    """Ask for the value of the environment variable ``name`` without echo.

    Raises:
        ConfigurationError: If no input is available.
    """
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
