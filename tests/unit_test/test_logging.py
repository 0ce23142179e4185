"""`abe.logging`: what is set up, what is left alone, and the examples of docs/LOGGING.md."""

from __future__ import annotations

import ast
import contextlib
import io
import itertools
import json
import logging
import logging.config
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextvars import copy_context
from pathlib import Path
from typing import Any

import pytest

from abe.backends.message_queue.base import Message, MessageContext
from abe.backends.message_queue.base.log_records import Handling, handling
from abe.logging import (
    FIELDS,
    LogFormat,
    LoggingConfig,
    LogLevel,
    get_logger,
    reset_logging,
    setup_logging_from_config,
)

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / "docs" / "LOGGING.md"


def handlers(logger: logging.Logger) -> list[logging.Handler]:
    """Return a logger's handlers without those by which pytest listens."""
    return [it for it in logger.handlers if not type(it).__module__.startswith("_pytest")]


def loggers() -> dict[str, tuple[int, bool, bool, list[logging.Handler]]]:
    """Return the state of every logger that is not as it was created."""
    root = logging.getLogger()
    known = [it for it in root.manager.loggerDict.values() if isinstance(it, logging.Logger)]
    states = {it.name: (it.level, it.propagate, it.disabled, handlers(it)) for it in [root, *known]}
    return {name: state for name, state in states.items() if state != (0, True, False, [])}


@pytest.fixture(autouse=True)
def _logging_is_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    before = loggers()
    yield
    reset_logging()
    assert loggers() == before


@pytest.fixture
def without_json_logger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make python-json-logger impossible to import."""
    for name in ("pythonjsonlogger", "pythonjsonlogger.json"):
        monkeypatch.setitem(sys.modules, name, None)


class TestSettings:
    """What is accepted, and how it is refused."""

    @pytest.mark.parametrize("value", ["debug", LogLevel.DEBUG, logging.DEBUG])
    def test_a_level_has_a_name_and_a_number(self, value: str | int) -> None:
        assert LogLevel.parse(value) is LogLevel.DEBUG

    @pytest.mark.parametrize("value", ["LOUD", "", 15, 0, True, None, 10.0])
    def test_an_unknown_level_is_refused_with_the_valid_ones(self, value: Any) -> None:
        with pytest.raises(ValueError, match="DEBUG, INFO, WARNING, ERROR, CRITICAL"):
            LoggingConfig(level=value).validate()

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("format", "no field"),
            ("format", "%(nosuch)s"),
            ("format", "%(message)s %d"),
            ("max_bytes", -1),
            ("max_bytes", "10"),
            ("backup_count", 1.5),
            ("backup_count", True),
            ("encoding", "utf-88"),
            ("enable_console", "no"),
            ("enable_file", 1),
            ("use_json_formatter", None),
            ("propagate", 0),
            ("logger_levels", {"abe.x": "LOUD"}),
            ("logger_levels", {"": "INFO"}),
        ],
    )
    def test_a_wrong_value_is_refused(self, name: str, value: Any) -> None:
        with pytest.raises(ValueError, match=f"{name}|log level"):
            LoggingConfig.from_dict({name: value})

    def test_unknown_settings_are_refused_by_name(self) -> None:
        with pytest.raises(ValueError, match=r"unknown logging setting: .*'colour'"):
            LoggingConfig.from_dict({"colour": True, "level": "INFO"})

    def test_a_wrong_configuration_changes_nothing(self) -> None:
        setup_logging_from_config({"level": "ERROR"})
        before = loggers()
        with pytest.raises(ValueError, match="LOUD"):
            setup_logging_from_config(LoggingConfig(level="LOUD"))
        with pytest.raises(ValueError, match="colour"):
            setup_logging_from_config({"colour": True})
        assert loggers() == before


class TestSetup:
    """What changes when logging is set up, and what does not."""

    def test_importing_changes_no_logging_configuration(self) -> None:
        program = """
            import logging, os
            def changed():
                known = [logging.getLogger(), *logging.root.manager.loggerDict.values()]
                return {
                    it.name: state for it in known if isinstance(it, logging.Logger)
                    if (state := (it.level, it.propagate, it.disabled, it.handlers)) != INITIAL
                }
            INITIAL = (0, True, False, [])
            before = changed()
            import abe, abe.logging, abe.backends.message_queue.consumer
            abe.load_backend, abe.AsyncLoopConsumer
            assert changed() == before == {"root": (30, True, False, [])}, changed()
            assert os.listdir() == []
        """
        subprocess.run(
            [sys.executable, "-W", "error", "-c", textwrap.dedent(program)], check=True, timeout=30
        )

    def test_importing_needs_only_the_standard_library(self) -> None:
        program = """
            import sys, abe
            before = set(sys.modules)
            import abe.logging
            new = set(sys.modules) - before
            print(*(x for x in new if x.partition(".")[0] not in sys.stdlib_module_names))
        """
        done = subprocess.run(
            [sys.executable, "-I", "-c", textwrap.dedent(program)],
            check=True, timeout=30, capture_output=True, text=True,
        )  # fmt: skip
        mine = {"abe._redact", "abe.logging", "abe.logging.utils"}
        assert set(done.stdout.split()) == mine

    def test_the_console_is_standard_error_of_the_moment(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        setup_logging_from_config()
        other = io.StringIO()
        with contextlib.redirect_stderr(other):
            get_logger("abe.some").info("there")
        get_logger("abe.some").info("here")
        get_logger("abe.some").debug("nowhere")
        out, err = capsys.readouterr()
        assert out == ""
        assert re.fullmatch(r"[\d-]+ [\d:,]+ INFO     abe\.some: here\n", err)
        assert other.getvalue().endswith(" INFO     abe.some: there\n")

    def test_twice_is_the_same_as_once(self, capsys: pytest.CaptureFixture[str]) -> None:
        config = LoggingConfig(
            format=LogFormat.SIMPLE, enable_file=True, logger_levels={"x": "INFO"}
        )
        setup_logging_from_config(config)
        setup_logging_from_config(config)
        get_logger("abe.some").warning("once")
        get_logger("x").info("once")
        assert capsys.readouterr().err == "WARNING: once\nINFO: once\n"
        assert Path("logs/abe.log").read_text() == "WARNING: once\nINFO: once\n"

    def test_other_loggers_and_their_handlers_are_untouched(self, tmp_path: Path) -> None:
        other = logging.getLogger("other.library")
        handler = logging.FileHandler(tmp_path / "other.log", mode="w")
        other.addHandler(handler)
        try:
            before = loggers()
            setup_logging_from_config()
            after = loggers()
            assert after.pop("abe")[:3] == (logging.INFO, False, False)
            assert after == before
            other.error("still written")
            assert (tmp_path / "other.log").read_text() == "still written\n"
        finally:
            other.removeHandler(handler)
            handler.close()

    def test_what_is_no_longer_named_gets_back_what_it_had(self) -> None:
        mine, deep = logging.getLogger("mine"), logging.getLogger("abe.backends")
        mine.setLevel(logging.ERROR)
        try:
            setup_logging_from_config({"logger_levels": {"mine": "DEBUG", "abe.backends": "DEBUG"}})
            assert (mine.level, mine.propagate, len(handlers(mine))) == (logging.DEBUG, False, 1)
            assert (deep.level, deep.propagate, handlers(deep)) == (logging.DEBUG, True, [])
            setup_logging_from_config()
            assert (mine.level, mine.propagate, handlers(mine)) == (logging.ERROR, True, [])
            assert deep.level == logging.NOTSET
        finally:
            mine.setLevel(logging.NOTSET)

    def test_a_logger_below_a_named_one_writes_once(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        levels = {"shop.orders": "DEBUG", "shop": "INFO", "shopping": "INFO"}
        setup_logging_from_config({"format": LogFormat.SIMPLE, "logger_levels": levels})
        for name in ("shop", "shop.orders", "shopping", "shop.prices"):
            get_logger(name).debug("debug of %s", name)
            get_logger(name).info("info of %s", name)
        assert capsys.readouterr().err.splitlines() == [
            "INFO: info of shop",
            "DEBUG: debug of shop.orders",
            "INFO: info of shop.orders",
            "INFO: info of shopping",
            "INFO: info of shop.prices",
        ]

    @pytest.mark.parametrize("propagate", [True, False])
    def test_propagation_to_the_root_logger(
        self, caplog: pytest.LogCaptureFixture, propagate: bool
    ) -> None:
        setup_logging_from_config(LoggingConfig(propagate=propagate))
        get_logger("abe.some").warning("heard")
        assert caplog.messages == ["heard"] * propagate

    def test_all_off_is_silence(self, capsys: pytest.CaptureFixture[str]) -> None:
        setup_logging_from_config(LoggingConfig(enable_console=False))
        get_logger("abe.some").critical("unheard")
        assert capsys.readouterr() == ("", "")

    @pytest.mark.parametrize("names", [{}, {"root": "INFO"}])
    def test_what_another_configuration_has_disabled_is_enabled(
        self, names: dict[str, str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        deep, other = logging.getLogger("abe.deep"), logging.getLogger("some.library")
        deep.disabled = other.disabled = True  # as dictConfig does unless told not to
        try:
            setup_logging_from_config({"format": LogFormat.SIMPLE, "logger_levels": names})
            deep.info("heard")
            other.info("heard too")
            heard = capsys.readouterr().err
            assert heard == "INFO: heard\n" + "INFO: heard too\n" * bool(names)
            reset_logging()
            assert deep.disabled
            assert other.disabled
        finally:
            deep.disabled = other.disabled = False


class TestFile:
    """The rotated file."""

    def test_the_folder_is_made_when_logging_is_set_up(self, tmp_path: Path) -> None:
        config = LoggingConfig(enable_file=True, log_dir=tmp_path / "deep" / "logs")
        config.validate()
        assert not (tmp_path / "deep").exists()
        setup_logging_from_config(config)
        assert (tmp_path / "deep" / "logs" / "abe.log").exists()

    def test_rotation_keeps_so_many_files_of_that_size(self) -> None:
        setup_logging_from_config(
            LoggingConfig(
                format="%(message)s",
                enable_console=False,
                enable_file=True,
                log_file="small.log",
                max_bytes=100,
                backup_count=2,
            )
        )
        for number in range(20):
            get_logger().info("%019d", number)
        reset_logging()
        files = {path.name: path.read_text().split() for path in Path("logs").iterdir()}
        numbers = [f"{number:019d}" for number in range(20)]
        assert files == {
            "small.log": numbers[16:],
            "small.log.1": numbers[12:16],
            "small.log.2": numbers[8:12],
        }

    def test_reconfiguring_closes_the_old_file(self) -> None:
        setup_logging_from_config({"enable_file": True, "log_file": "a.log"})
        _, old = handlers(get_logger())
        assert isinstance(old, logging.FileHandler)
        stream: Any = old.stream
        setup_logging_from_config({"enable_file": True, "log_file": "b.log"})
        assert stream.closed
        get_logger().info("new")
        assert Path("logs/a.log").read_text() == ""
        assert Path("logs/b.log").read_text().endswith("new\n")

    def test_a_file_that_cannot_be_opened_changes_nothing(self) -> None:
        setup_logging_from_config({"level": "ERROR"})
        before = loggers()
        Path("taken").touch()
        with pytest.raises(OSError, match="taken"):
            setup_logging_from_config({"enable_file": True, "log_dir": "taken"})
        assert loggers() == before


class TestFormats:
    """Text and JSON."""

    @pytest.mark.parametrize("form", LogFormat, ids=[form.name for form in LogFormat])
    def test_ready_made_formats(self, form: LogFormat, capsys: pytest.CaptureFixture[str]) -> None:
        setup_logging_from_config(LoggingConfig(format=form, date_format="%H"))
        get_logger("abe.some").info("hello %s", "you")
        assert capsys.readouterr().err.endswith("hello you\n")

    def test_a_format_may_name_the_fields(self, capsys: pytest.CaptureFixture[str]) -> None:
        text = "%(backend)s %(group)s %(key)s %(id)s %(attempt)s %(message)s"
        setup_logging_from_config(LoggingConfig(format=text))
        get_logger().info("some", extra={"key": "orders", "attempt": 2})
        assert capsys.readouterr().err == "- - orders - 2 some\n"

    def test_json(self, capsys: pytest.CaptureFixture[str]) -> None:
        text = "%(asctime)s %(levelname)s %(name)s %(threadName)s %(key)s %(message)s"
        setup_logging_from_config(LoggingConfig(use_json_formatter=True, format=text))
        get_logger("abe.some").info("all ünder %s", "control", extra={"id": "7", "price": 1.5})
        try:
            raise KeyError("missing")
        except KeyError:
            get_logger("abe.some").exception("failed", extra={"key": "orders"})
        first, second = map(json.loads, capsys.readouterr().err.splitlines())
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+\+00:00", first.pop("timestamp"))
        assert first == {
            "level": "INFO",
            "logger": "abe.some",
            "threadName": "MainThread",
            "message": "all ünder control",
            "id": "7",
            "price": 1.5,
        }
        assert second["key"] == "orders"
        assert second["exc_info"].endswith("KeyError: 'missing'")

    def test_json_without_the_package_is_an_error_that_says_what_to_install(
        self, without_json_logger: None
    ) -> None:
        setup_logging_from_config({"level": "ERROR"})
        before = loggers()
        config = LoggingConfig(use_json_formatter=True)
        config.validate()
        with pytest.raises(ImportError, match=r'pip install -e "\.\[logging\]"'):
            setup_logging_from_config(config)
        assert loggers() == before


HOSTILE = "x\n2030-01-01 00:00:00,000 ERROR    abe.auth: logged in\x1b[2J\r\u2028\ud800"


class Unprintable:
    """A value that nobody can print."""

    def __str__(self) -> str:
        raise RuntimeError("no")


class TestHostileRecords:
    """Nothing in a record breaks its line, forges another or loses it."""

    @pytest.mark.parametrize("json_logs", [False, True])
    def test_one_record_is_one_line(
        self, json_logs: bool, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        log = tmp_path / "log"
        setup_logging_from_config(
            LoggingConfig(use_json_formatter=json_logs, enable_file=True, log_file=log)
        )
        get_logger().info("%s", HOSTILE, extra={"key": HOSTILE, "id": HOSTILE})
        shown = capsys.readouterr().err
        assert log.read_text(encoding="utf-8") == shown
        assert shown.isprintable() or shown[:-1].isprintable()
        assert len(shown.splitlines()) == 1

    def test_a_traceback_cannot_look_like_another_record(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        setup_logging_from_config()
        try:
            raise ValueError(HOSTILE)
        except ValueError:
            get_logger().exception("failed")
        first, *rest = capsys.readouterr().err.splitlines()
        assert first.endswith("ERROR    abe: failed")
        assert rest
        assert all(line.startswith("    ") and line.isprintable() for line in rest)

    def test_json_holds_whatever_it_is_given(self, capsys: pytest.CaptureFixture[str]) -> None:
        cycle: list[Any] = []
        cycle.append(cycle)
        extra = {
            "nan": float("nan"),
            "deep": {1: float("inf"), "cycle": cycle},
            "long": 10**5000,
            "odd": Unprintable(),
            "set": {1},
            "password": "hunter2",
            "text": "redis://me:hunter2@host",
        }
        setup_logging_from_config(LoggingConfig(use_json_formatter=True))
        get_logger().info("all", extra=extra)

        def refuse(constant: str) -> None:
            raise AssertionError(f"{constant} is not JSON")

        (line,) = capsys.readouterr().err.splitlines()
        assert {n: json.loads(line, parse_constant=refuse)[n] for n in extra} == {
            "nan": "nan",
            "deep": {"1": "inf", "cycle": ["<cycle>"]},
            "long": "<int>",
            "odd": "<Unprintable>",
            "set": [1],
            "password": "***",
            "text": "redis://***@host",
        }

    def test_secrets_are_redacted_in_text(self, capsys: pytest.CaptureFixture[str]) -> None:
        setup_logging_from_config(LoggingConfig(format=LogFormat.SIMPLE))
        get_logger().error("cannot reach %s", "amqp://me:hunter2@host")
        assert capsys.readouterr().err == "ERROR: cannot reach amqp://***@host\n"


def test_the_message_in_hand_is_in_every_record(capsys: pytest.CaptureFixture[str]) -> None:
    text = "%(backend)s %(group)s %(key)s %(id)s %(attempt)s %(message)s"
    setup_logging_from_config({"format": text, "logger_levels": {"root": "INFO"}}, MessageContext())
    message = Message({}, "7", "orders.created", attempt=2)

    def handle() -> None:
        handling.set(Handling(message, "memory", "billing"))
        logging.getLogger("shop.bills").info("billed")
        logging.getLogger("shop.bills").info("of another", extra={"id": "8"})

    copy_context().run(handle)
    logging.getLogger("shop.bills").info("nothing in hand")
    assert capsys.readouterr().err.splitlines() == [
        "memory billing orders.created 7 2 billed",
        "memory billing orders.created 8 2 of another",
        "- - - - - nothing in hand",
    ]


def fences() -> list[tuple[str, str]]:
    """Return language with title, and text, of every fenced block of the guide."""
    return re.findall(
        r"^```(.+)\n((?:.*\n)*?)```$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE
    )


def anonymous(text: str) -> str:
    """Return output without what differs between runs: times and message ids."""
    text = re.sub(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d[.,]\d+(\+00:00)?", "TIME", text)
    return re.sub(r'(\bid=|"id": ")[^" ]+', r"\1ID", text)


class TestGuide:
    """docs/LOGGING.md says what is so."""

    @pytest.fixture(autouse=True)
    def _files(self) -> None:
        for language, text in fences():
            if title := re.search(r'title="(.+)"', language):
                Path(title[1]).write_text(text, encoding="utf-8")

    @pytest.mark.parametrize(
        ("example", "output"),
        [
            pytest.param(text, after, id=f"{number}")
            for number, ((language, text), (_, after)) in enumerate(itertools.pairwise(fences()))
            if language == "python"
        ],
    )
    def test_example(self, example: str, output: str) -> None:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-"],
            input=example, capture_output=True, text=True, timeout=30, check=True, encoding="utf-8",
        )  # fmt: skip
        assert done.stdout == ""
        assert anonymous(done.stderr) == anonymous(output)

    def test_settings(self) -> None:
        rows = re.findall(r"^\| `(\w+)` \| `?([^|`]+)`? \|", GUIDE.read_text("utf-8"), re.MULTILINE)
        defaults = {name: str(value) for name, value in vars(LoggingConfig()).items()}
        defaults["format"] = f"LogFormat.{LogFormat(defaults['format']).name}"
        assert {name: default for name, default in rows if name in defaults} == defaults

    def test_events(self) -> None:
        rows = re.findall(
            r"^\| `(abe[\w.]+)` \| [A-Z].*? \| `(.+?)`.*? \| (.*) \|$",
            GUIDE.read_text(encoding="utf-8"),
            re.MULTILINE,
        )
        packages = [ROOT / "abe", *ROOT.glob("providers/*/abe_backend_*")]
        sources = {
            ".".join(path.relative_to(package.parent).with_suffix("").parts): source
            for package in packages
            for path in package.rglob("*.py")
            if "\nlogger = " in (source := path.read_text(encoding="utf-8"))
        }
        assert {logger for logger, _, _ in rows} == set(sources), "bring the table up to date"
        for logger, event, fields in rows:
            nodes = ast.walk(ast.parse(sources[logger]))
            constants = [str(it.value) for it in nodes if isinstance(it, ast.Constant)]
            for part in filter(None, event.split("…")):
                assert any(part.strip() in constant for constant in constants), (logger, part)
            assert fields in {"all", "none"} or set(fields.split(", ")) <= set(FIELDS)
