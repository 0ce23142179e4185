"""Logging for programs that run abe; the library itself only logs and sets up nothing."""

from abe.logging.utils import *  # noqa: F403 - all that is public there
from abe.logging.utils import __all__ as __all__
