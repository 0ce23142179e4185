"""Set up logging for a program from a `LoggingConfig`; nothing happens on import."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, Self, TextIO

from abe._redact import SECRET, is_secret, known

__all__ = ["LogFormat", "LogLevel", "LoggingConfig", "get_logger", "reset_logging", "FIELDS"]
__all__ += ["setup_logging_from_config"]

FIELDS = ("backend", "key", "group", "id", "attempt")
"""What abe's log records carry as ``extra``, each where it is known."""
_UNSAFE = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_NAME = "abe"
_lock = threading.RLock()
_before: dict[logging.Logger, tuple[int, bool, bool]] = {}


class LogLevel(StrEnum):
    """The levels, by name."""

    DEBUG, INFO, WARNING, ERROR, CRITICAL = "DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"

    @classmethod
    def parse(cls, value: object) -> Self:
        """Return the level of a name, in any case, or of a number of `logging`.

        Raises:
            ValueError: If there is no such level.
        """
        name = logging.getLevelName(value) if type(value) is int else value
        if isinstance(name, str) and name.upper() in cls.__members__:
            return cls(name.upper())
        raise ValueError(f"{value!r} is not a log level; there are {', '.join(cls)}")


class LogFormat(StrEnum):
    """Ready-made %-formats; one of your own may also name `FIELDS`, as in ``%(key)s``."""

    SIMPLE = "%(levelname)s: %(message)s"
    STANDARD = "%(asctime)s %(levelname)-8s %(name)s: %(message)s"
    DETAILED = "%(asctime)s %(levelname)-8s %(name)s [%(process)d %(threadName)s %(filename)s:%(lineno)d] %(message)s"  # noqa: E501


@dataclass(kw_only=True)
class LoggingConfig:
    """How a program logs; the guide to logging has a table of the settings."""

    level: LogLevel | str | int = LogLevel.INFO
    format: str = LogFormat.STANDARD
    date_format: str | None = None
    log_file: str | os.PathLike[str] | None = None
    log_dir: str | os.PathLike[str] = "logs"
    max_bytes: int = 10 * 1024 * 1024
    backup_count: int = 5
    encoding: str = "utf-8"
    enable_console: bool = True
    enable_file: bool = False
    use_json_formatter: bool = False
    logger_levels: Mapping[str, LogLevel | str | int] = field(default_factory=dict)
    propagate: bool = False

    def validate(self) -> None:
        """Raise `ValueError` if a setting is wrong; touches no file."""
        for name, level in {"level": self.level, **self.logger_levels}.items():
            LogLevel.parse(level)
            if not name:
                raise ValueError(f"logger_levels: {name!r} is not the name of a logger")
        for item in dataclasses.fields(self):
            value, default = getattr(self, item.name), item.default
            if isinstance(default, int) and (type(value) is not type(default) or value < 0):
                raise ValueError(f"{item.name} is {value!r}; it must be like {default!r}")
        try:
            _TextFormatter(self.format).format(logging.makeLogRecord({}))
            "".encode(self.encoding)
        except (ValueError, TypeError, LookupError) as error:
            raise ValueError(f"format or encoding is wrong: {error}") from None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return the configuration of a mapping, e.g. a table of a TOML file.

        Raises:
            ValueError: If a setting is unknown or wrong.
        """
        try:
            config = cls(**data)
        except TypeError as error:
            raise ValueError(f"unknown logging setting: {error}") from None
        config.validate()
        return config


class _TextFormatter(logging.Formatter):
    """Writes a record on one line; what belongs to it, such as a traceback, is indented."""

    def format(self, record: logging.LogRecord) -> str:
        data = {**dict.fromkeys(FIELDS, "-"), **record.__dict__, "message": record.getMessage()}
        data["asctime"] = self.formatTime(record, self.datefmt)
        safe = {n: _escape(known.hide(it)) if isinstance(it, str) else it for n, it in data.items()}
        trace = self.formatException(record.exc_info) if record.exc_info else record.exc_text
        rest = "\n".join(filter(None, (trace, record.stack_info)))
        lines = [f"\n    {_escape(line)}" for line in known.hide(rest).split("\n") if rest]
        return self.formatMessage(logging.makeLogRecord(safe)) + "".join(lines)


def _escape(text: str) -> str:
    return _UNSAFE.sub(lambda match: {"\n": "\\n"}.get(match[0], f"\\u{ord(match[0]):04x}"), text)


def _json_formatter(format: str) -> logging.Formatter:
    try:
        from pythonjsonlogger.json import JsonFormatter
    except ImportError as error:
        text = 'JSON needs python-json-logger; from the checkout: pip install -e ".[logging]"'
        raise ImportError(text) from error
    # Fields are extras: left out here, they appear only where a record has them.
    names = [name for name in re.findall(r"%\((\w+)\)", format) if name not in ("asctime", *FIELDS)]
    return JsonFormatter(
        "".join(f"%({name})s" for name in names or ["message"]),
        rename_fields={"levelname": "level", "name": "logger"},
        timestamp=True,
        json_serializer=lambda data, **_: _escape(json.dumps(_plain(data), ensure_ascii=False)),
    )


def _plain(value: Any, above: tuple[int, ...] = ()) -> Any:
    """Return what JSON can hold of a value, whatever it is."""
    try:
        if isinstance(value, dict | list | tuple | set):
            if id(value) in above or len(above) > 50:
                return "<cycle>"
            above = (*above, id(value))
            if isinstance(value, dict):
                items = ((str(name), inner) for name, inner in value.items())
                return {n: SECRET if is_secret(n) else _plain(it, above) for n, it in items}
            return [_plain(inner, above) for inner in value]
        number = isinstance(value, int | float) and math.isfinite(value) and abs(value) < 1e300
        if number or value is None:
            return value
        return known.hide(value.isoformat() if hasattr(value, "isoformat") else str(value))
    except Exception:  # of a foreign __str__, or a number of more digits than Python converts
        return f"<{type(value).__name__}>"


class _ConsoleHandler(logging.StreamHandler[TextIO]):
    """Writes to what ``sys.stderr`` is at that moment: notebooks and tests exchange it."""

    stream = property(lambda _: sys.stderr, lambda *_: None)


def _handlers(config: LoggingConfig, *filters: logging.Filter) -> Iterator[logging.Handler]:
    text = _TextFormatter(config.format, config.date_format)
    formatter = _json_formatter(config.format) if config.use_json_formatter else text
    kinds: list[logging.Handler] = [_ConsoleHandler()] if config.enable_console else []
    if config.enable_file:
        path = Path(config.log_dir, config.log_file or "abe.log").absolute()
        path.parent.mkdir(parents=True, exist_ok=True)
        how = (config.max_bytes, config.backup_count, config.encoding, False, "backslashreplace")
        kinds.append(RotatingFileHandler(path, "a", *how))
    for handler in kinds or [logging.NullHandler()]:  # without any, logging prints warnings
        handler.setFormatter(formatter)
        handler.name = _NAME
        for each in filters:
            handler.addFilter(each)
        yield handler


def setup_logging_from_config(
    config: LoggingConfig | Mapping[str, Any] | None = None, *filters: logging.Filter
) -> None:
    """Log as the configuration says, instead of what an earlier call set up.

    Changes the logger ``abe`` and those that ``logger_levels`` names (``"root"`` for all), and
    enables the loggers below them that somebody's ``disable_existing_loggers`` has disabled. If it
    raises, everything stays as it was.

    Args:
        config: A `LoggingConfig`, a mapping for `LoggingConfig.from_dict`, or ``None``.
        filters: For every handler, such as `abe.backends.message_queue.base.MessageContext`.

    Raises:
        ValueError: If a setting is wrong.
        ImportError: If JSON is asked for and python-json-logger is missing.
        OSError: If the log file cannot be opened.
    """
    config = config if isinstance(config, LoggingConfig) else LoggingConfig.from_dict(config or {})
    config.validate()
    levels = {"abe": config.level, **config.logger_levels}
    with _lock:
        handlers = list(_handlers(config, *filters))
        reset_logging()
        for name, level in levels.items():
            logger = _remember(logging.getLogger(name))
            logger.setLevel(LogLevel.parse(level).value)
            for other in [*logging.root.manager.loggerDict.values()]:
                below = name == "root" or f"{getattr(other, 'name', '')}.".startswith(f"{name}.")
                if isinstance(other, logging.Logger) and other.disabled and below:
                    _remember(other).disabled = False
            above = {"root", *(name[:n] for n, letter in enumerate(name) if letter == ".")} - {name}
            if levels.keys().isdisjoint(above):  # one below another needs no handlers of its own
                logger.propagate = config.propagate
                for handler in handlers:
                    logger.addHandler(handler)


def _remember(logger: logging.Logger) -> logging.Logger:
    _before.setdefault(logger, (logger.level, logger.propagate, logger.disabled))
    return logger


def reset_logging() -> None:
    """Undo `setup_logging_from_config`: close its handlers, restore its loggers."""
    with _lock:
        for logger, (level, propagate, disabled) in _before.items():
            for handler in logger.handlers[:]:
                if handler.name == _NAME:
                    logger.removeHandler(handler)
                    handler.close()
            logger.setLevel(level)
            logger.propagate, logger.disabled = propagate, disabled
        _before.clear()


def get_logger(name: str = "abe") -> logging.Logger:
    """Return the logger of that name, usually ``__name__``."""
    return logging.getLogger(name)
