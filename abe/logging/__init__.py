"""Logging for programs that run abe; the library itself only logs and sets up nothing.

Needs the standard library alone, and for JSON the extra ``logging``.
"""

from __future__ import annotations

from abe.logging.settings import (
    LogFormat,
    LoggingConfig,
    LogLevel,
    get_default_logging_config,
)
from abe.logging.utils import (
    create_log_file_path,
    get_logger,
    get_logger_level,
    get_logging_dict_config,
    reset_logging,
    set_logger_level,
    setup_logging_from_config,
)

__all__ = [
    "LogFormat",
    "LogLevel",
    "LoggingConfig",
    "create_log_file_path",
    "get_default_logging_config",
    "get_logger",
    "get_logger_level",
    "get_logging_dict_config",
    "reset_logging",
    "set_logger_level",
    "setup_logging_from_config",
]
