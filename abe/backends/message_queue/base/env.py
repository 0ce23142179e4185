"""Numbers from environment variables."""

from __future__ import annotations

import math
import os

from abe.errors import ConfigurationError

__all__ = ["env_number"]


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
