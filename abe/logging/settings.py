"""What an application may say about logging; plain data, nothing is set up here."""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

__all__ = ["FIELDS", "LogFormat", "LogLevel", "LoggingConfig", "get_default_logging_config"]

FIELDS = ("backend", "key", "group", "id", "attempt")
"""What abe's log records carry as ``extra``, each where it is known."""


class LogLevel(StrEnum):
    """The levels, by name."""

    DEBUG = "DEBUG"
    INFO = "INFO"
    WARNING = "WARNING"
    ERROR = "ERROR"
    CRITICAL = "CRITICAL"

    @classmethod
    def parse(cls, value: object) -> Self:
        """Return the level that a name, in any case, or a number of `logging` means.

        Raises:
            ValueError: If there is no such level.
        """
        if isinstance(value, str) and value.upper() in cls.__members__:
            return cls(value.upper())
        if isinstance(value, int) and not isinstance(value, bool):
            name = logging.getLevelName(value)
            if name in cls.__members__:
                return cls(name)
        raise ValueError(f"{value!r} is not a log level; there are {', '.join(cls)}")


class LogFormat(StrEnum):
    """Ready-made formats.

    The words of abe's messages already say which key, group and attempt they are about, so these
    formats do not repeat them. A format of your own may name ``backend``, ``key``, ``group``,
    ``id`` and ``attempt``, as in ``%(key)s``; a record without that field shows ``-``.
    """

    SIMPLE = "%(levelname)s: %(message)s"
    """For a terminal: level and message."""
    STANDARD = "%(asctime)s %(levelname)-8s %(name)s: %(message)s"
    """The default: also when, and which logger."""
    DETAILED = (
        "%(asctime)s %(levelname)-8s %(name)s [%(process)d %(threadName)s"
        " %(filename)s:%(lineno)d] %(message)s"
    )
    """Also which process, thread and line."""


def _format_problem(value: object) -> str | None:
    if not isinstance(value, str):
        return f"format must be a string, not {value!r}"
    record = logging.LogRecord("abe", logging.INFO, __file__, 1, "", None, None)
    record.__dict__.update(dict.fromkeys(FIELDS, "-"), asctime="", message="")
    try:
        style = logging.PercentStyle(value)
        style.validate()
        style.format(record)
    except (ValueError, TypeError) as error:
        return f"format must be a %-format such as {LogFormat.SIMPLE.value!r}: {error}"
    return None


def _date_format_problem(value: object) -> str | None:
    if value is not None:
        try:
            time.strftime(value)  # type: ignore[arg-type]  # whatever was given
        except (ValueError, TypeError) as error:
            return f"date_format must be None or for time.strftime, not {value!r}: {error}"
    return None


def _level_problem(name: str, value: object) -> str | None:
    try:
        LogLevel.parse(value)
    except ValueError as error:
        return f"{name}: {error}"
    return None


def _encoding_problem(value: object) -> str | None:
    try:
        "a".encode(value)  # type: ignore[arg-type]  # whatever was given
    except (LookupError, ValueError, TypeError):
        return f"encoding must be the name of a text encoding such as 'utf-8', not {value!r}"
    return None


@dataclass(kw_only=True)
class LoggingConfig:
    """How abe logs in one process; `abe.logging.setup_logging_from_config` puts it into effect.

    Args:
        level: The least level that is logged: a `LogLevel`, its name or its number.
        format: A %-format: a `LogFormat` or your own.
        date_format: How ``%(asctime)s`` is written, for `time.strftime`; ``None`` is ISO-like
            local time with milliseconds.
        log_file: The file's name inside ``log_dir``, or an absolute path; ``None`` is
            ``abe.log``. Ignored unless ``enable_file`` is set.
        log_dir: The folder for log files; it is made when logging is set up.
        max_bytes: Size in bytes at which the file is rotated; 0 never rotates.
        backup_count: How many rotated files are kept beside the current one; with 0 the file is
            never rotated.
        encoding: Encoding of the file.
        enable_console: Whether to log to standard error.
        enable_file: Whether to log to the file.
        use_json_formatter: Whether to write one JSON object a line instead of text; needs the
            extra ``logging``.
        logger_levels: Levels of single loggers by name. One below ``abe`` only gets its level;
            any other name, such as a provider's or your own package, also gets abe's handlers.
        propagate: Whether records go on to the handlers of the root logger as well.
    """

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

    def __post_init__(self) -> None:
        # As strings, so that a configuration equals itself after a round trip through JSON.
        if isinstance(self.log_file, os.PathLike):
            self.log_file = os.fspath(self.log_file)
        if isinstance(self.log_dir, os.PathLike):
            self.log_dir = os.fspath(self.log_dir)

    def validate(self) -> None:
        """Check every setting; touches no file.

        Raises:
            ValueError: If settings are wrong; the text names each of them.
        """
        problems = [problem for problem in self._problems() if problem]
        if problems:
            raise ValueError("; ".join(problems))

    def _problems(self) -> Iterator[str | None]:
        yield _level_problem("level", self.level)
        yield _format_problem(self.format)
        yield _date_format_problem(self.date_format)
        if not (self.log_file is None or _is_path(self.log_file)):
            yield f"log_file must be a file name or None, not {self.log_file!r}"
        if not _is_path(self.log_dir):
            yield f"log_dir must be a folder's name, not {self.log_dir!r}"
        for name in ("max_bytes", "backup_count"):
            value = getattr(self, name)
            if type(value) is not int or value < 0:
                yield f"{name} must be a whole number, 0 or more, not {value!r}"
        yield _encoding_problem(self.encoding)
        for name in ("enable_console", "enable_file", "use_json_formatter", "propagate"):
            value = getattr(self, name)
            if type(value) is not bool:
                yield f"{name} must be True or False, not {value!r}"
        yield from self._logger_level_problems()

    def _logger_level_problems(self) -> Iterator[str | None]:
        levels: object = self.logger_levels
        if not isinstance(levels, Mapping):
            yield f"logger_levels must map names to levels, not {levels!r}"
            return
        for name, level in levels.items():
            if not (isinstance(name, str) and name):
                yield f"logger_levels: {name!r} is not the name of a logger"
            elif name == "root":
                yield "logger_levels: the root logger is the application's; see logging.basicConfig"
            else:
                yield _level_problem(f"logger_levels[{name!r}]", level)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as JSON-ready data, for `from_dict`."""
        data = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        for name in ("log_file", "log_dir"):
            data[name] = None if data[name] is None else os.fspath(data[name])
        data["format"] = str(self.format)
        data["level"] = _plain(self.level)
        data["logger_levels"] = {name: _plain(it) for name, it in self.logger_levels.items()}
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return the configuration of a mapping, e.g. a table of a TOML file, and validate it.

        Args:
            data: Settings by name; what is missing has its default.

        Raises:
            ValueError: If there is a setting that does not exist, or a wrong value.
        """
        known = [item.name for item in dataclasses.fields(cls)]
        unknown = [repr(name) for name in data if name not in known]
        if unknown:
            text = f"unknown logging settings: {', '.join(unknown)}; there are {', '.join(known)}"
            raise ValueError(text)
        config = cls(**data)
        config.validate()
        return config


def _is_path(value: object) -> bool:
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    return isinstance(path, str) and path != ""


def _plain(level: object) -> object:
    return str(level) if isinstance(level, str) else level


def get_default_logging_config() -> LoggingConfig:
    """Return a new configuration with the defaults.

    INFO and above on standard error; no file, but if ``enable_file`` is set, ``logs/abe.log`` with
    5 rotated files of 10 MiB.
    """
    return LoggingConfig()
