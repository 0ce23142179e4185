"""Put a `LoggingConfig` into effect, and small helpers around loggers.

Nothing happens on import, and only the loggers that a configuration names are ever changed.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
from collections.abc import Mapping
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from abe.logging.settings import FIELDS, LoggingConfig, LogLevel, get_default_logging_config

if TYPE_CHECKING:
    from pythonjsonlogger.json import JsonFormatter

__all__ = [
    "create_log_file_path",
    "get_logger",
    "get_logger_level",
    "get_logging_dict_config",
    "reset_logging",
    "set_logger_level",
    "setup_logging_from_config",
]

ROOT = "abe"
"""Every logger of abe is below this one."""

CONSOLE = "abe.console"
FILE = "abe.file"

_lock = threading.Lock()
_before: dict[str, tuple[int, bool]] = {}
"""Level and propagation of the loggers that are set up, as they were before."""


class ConsoleHandler(logging.StreamHandler[TextIO]):
    """Writes to what ``sys.stderr`` is at that moment: notebooks and tests exchange it."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        """The current standard error."""
        return sys.stderr

    @stream.setter
    def stream(self, value: TextIO) -> None:
        raise AttributeError("the console handler always writes to sys.stderr")


def text_formatter(fmt: str, datefmt: str | None) -> logging.Formatter:
    """Return a formatter whose format may name the fields of abe's records."""
    return logging.Formatter(fmt, datefmt, defaults=dict.fromkeys(FIELDS, "-"))


def json_formatter(fmt: str) -> logging.Formatter:
    """Return a formatter that writes one JSON object a line.

    It holds what ``fmt`` names, with ``level`` and ``logger`` for ``levelname`` and ``name``, every
    ``extra`` of the record, and ``timestamp`` (ISO 8601, UTC) instead of ``asctime``.

    Raises:
        ImportError: If python-json-logger is missing.
    """
    formatter = _json_formatter_class()
    # Fields are extras: left out here, they appear only where a record has them.
    names = [name for name in re.findall(r"%\((\w+)\)", fmt) if name not in ("asctime", *FIELDS)]
    return formatter(
        "".join(f"%({name})s" for name in names or ["message"]),
        rename_fields={"levelname": "level", "name": "logger"},
        timestamp=True,
        json_ensure_ascii=False,
    )


def _json_formatter_class() -> type[JsonFormatter]:
    try:
        from pythonjsonlogger.json import JsonFormatter
    except ImportError as error:
        raise ImportError(
            "use_json_formatter needs python-json-logger 3.1 or newer;"
            ' from the checkout: pip install -e ".[logging]"',
            name="pythonjsonlogger",
        ) from error
    return JsonFormatter


def file_handler(
    log_file: str | os.PathLike[str] | None,
    log_dir: str | os.PathLike[str],
    max_bytes: int,
    backup_count: int,
    encoding: str,
) -> RotatingFileHandler:
    """Return a handler for a rotated file; makes its folder and opens the file."""
    path = create_log_file_path(log_file, log_dir)
    return RotatingFileHandler(
        path, maxBytes=max_bytes, backupCount=backup_count, encoding=encoding
    )


def create_log_file_path(
    log_file: str | os.PathLike[str] | None = None, log_dir: str | os.PathLike[str] = "logs"
) -> Path:
    """Return the absolute path of a log file, and make the folder that it belongs into.

    Args:
        log_file: The file's name, or its absolute path, which makes ``log_dir`` irrelevant;
            ``None`` is ``abe.log``.
        log_dir: The folder, relative to the working directory.
    """
    path = Path(log_dir, log_file or f"{ROOT}.log").absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def get_logging_dict_config(config: LoggingConfig | None = None) -> dict[str, Any]:
    """Return the configuration for `logging.config.dictConfig`, to merge with your own.

    Touches no file and no logger. Note that ``dictConfig`` closes the handlers of the whole
    process; `setup_logging_from_config` closes only those it made.

    Args:
        config: What to set up; ``None`` is the default.

    Raises:
        ValueError: If a setting is wrong.
        TypeError: If ``config`` is something else.
        ImportError: If JSON is asked for and python-json-logger is missing.
    """
    config = get_default_logging_config() if config is None else config
    if not isinstance(config, LoggingConfig):
        raise TypeError(
            f"config must be a LoggingConfig, such as LoggingConfig(level='INFO'), not {config!r}"
        )
    config.validate()
    formatter: dict[str, Any] = {"()": text_formatter, "datefmt": config.date_format}
    if config.use_json_formatter:
        _json_formatter_class()
        formatter = {"()": json_formatter}
    handlers: dict[str, dict[str, Any]] = {}
    if config.enable_console:
        handlers[CONSOLE] = {"()": ConsoleHandler, "formatter": ROOT}
    if config.enable_file:
        settings = ("log_file", "log_dir", "max_bytes", "backup_count", "encoding")
        options = {name: getattr(config, name) for name in settings}
        handlers[FILE] = {"()": file_handler, "formatter": ROOT, **options}
    if not handlers:  # without any handler, logging would print warnings by itself
        handlers[CONSOLE] = {"()": logging.NullHandler, "formatter": ROOT}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {ROOT: {**formatter, "fmt": str(config.format)}},
        "handlers": handlers,
        "loggers": _logger_settings(config, list(handlers)),
    }


def _logger_settings(config: LoggingConfig, handlers: list[str]) -> dict[str, dict[str, Any]]:
    """Return what each logger gets: one below another of them needs no handlers of its own."""
    levels = {ROOT: config.level, **config.logger_levels}
    loggers: dict[str, dict[str, Any]] = {}
    for name, level in levels.items():
        loggers[name] = {"level": LogLevel.parse(level).value}
        above = [name[:position] for position, letter in enumerate(name) if letter == "."]
        if levels.keys().isdisjoint(above):
            loggers[name].update(handlers=handlers, propagate=config.propagate)
    return loggers


def setup_logging_from_config(config: LoggingConfig | Mapping[str, Any] | None = None) -> None:
    """Log as the configuration says, instead of what an earlier call set up.

    Changes the logger ``abe`` and those that ``logger_levels`` names, no other. Handlers that an
    earlier call made are closed, and loggers that are no longer named get back the level and the
    propagation that they had. Calling it twice with the same configuration changes nothing. If it
    raises, everything stays as it was.

    Args:
        config: What to set up: a `LoggingConfig`, a mapping for `LoggingConfig.from_dict`, or
            ``None`` for the default.

    Raises:
        ValueError: If a setting is wrong.
        TypeError: If ``config`` is something else.
        ImportError: If JSON is asked for and python-json-logger is missing.
        OSError: If the log file cannot be opened.
    """
    if isinstance(config, Mapping):
        config = LoggingConfig.from_dict(config)
    data = get_logging_dict_config(config)
    formatter: logging.Formatter = _make(data["formatters"][ROOT])
    with _lock:
        handlers: dict[str, logging.Handler] = {
            name: _make(specification) for name, specification in data["handlers"].items()
        }
        _reset()
        for name, settings in data["loggers"].items():
            logger = logging.getLogger(name)
            _remove_handlers(logger)
            _before[name] = (logger.level, logger.propagate)
            logger.setLevel(settings["level"])
            logger.propagate = settings.get("propagate", logger.propagate)
            for handler in settings.get("handlers", ()):
                logger.addHandler(handlers[handler])
        for name, handler in handlers.items():
            handler.setFormatter(formatter)
            handler.name = name


def _make(specification: Mapping[str, Any]) -> Any:
    """Call a factory of the configuration, as ``dictConfig`` would."""
    options = {key: value for key, value in specification.items() if key not in ("()", "formatter")}
    return specification["()"](**options)


def reset_logging() -> None:
    """Undo `setup_logging_from_config`: close its handlers, restore levels and propagation."""
    with _lock:
        _reset()


def _reset() -> None:
    for name, (level, propagate) in _before.items():
        logger = logging.getLogger(name)
        _remove_handlers(logger)
        logger.setLevel(level)
        logger.propagate = propagate
    _before.clear()


def _remove_handlers(logger: logging.Logger) -> None:
    for handler in logger.handlers[:]:
        if handler.name in (CONSOLE, FILE):
            logger.removeHandler(handler)
            handler.close()


def get_logger(name: str | None = None) -> logging.Logger:
    """Return a logger.

    Args:
        name: Its name, usually ``__name__``; ``None`` is the logger ``abe``.
    """
    return logging.getLogger(name or ROOT)


def set_logger_level(name: str | None, level: LogLevel | str | int) -> None:
    """Set the level of one logger and leave the rest of it alone.

    Args:
        name: The logger's name; ``None`` is the logger ``abe``.
        level: Its new level.

    Raises:
        ValueError: If there is no such level.
    """
    get_logger(name).setLevel(LogLevel.parse(level).value)


def get_logger_level(name: str | None = None) -> str:
    """Return the name of the level from which a logger logs, its own or its parents'.

    Args:
        name: The logger's name; ``None`` is the logger ``abe``.
    """
    return logging.getLevelName(get_logger(name).getEffectiveLevel())
