"""Numbers and switches from environment variables."""

from __future__ import annotations

import math
import os

from abe.errors import ConfigurationError

__all__ = ["env_flag", "env_number"]

_OFF, _ON = ("", "0", "false", "no", "off"), ("1", "true", "yes", "on")


def env_flag(variable: str) -> bool:
    """Return whether ``variable`` is switched on; unset and empty are off.

    Args:
        variable: Name of the environment variable.

    Raises:
        ConfigurationError: If it is none of 1, true, yes, on, 0, false, no and off, in any case.
    """
    text = os.environ.get(variable, "")
    if text.lower() not in (*_OFF, *_ON):
        raise ConfigurationError(f"{variable} is {text!r}; it must be 1 or 0")
    return text.lower() in _ON


def env_number(variable: str, default: float, *, minimum: float = 0.0) -> float:
    """Return the number in ``variable``, or ``default`` if it is unset or empty.

    Args:
        variable: Name of the environment variable.
        default: Returned as it is, whatever ``minimum`` says.
        minimum: The least number allowed.

    Raises:
        ConfigurationError: If it is not a finite number of at least ``minimum``.
    """
    text = os.environ.get(variable, "")
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not minimum <= value < math.inf:
        raise ConfigurationError(f"{variable} is {text!r}; it must be a number >= {minimum:g}")
    return value
