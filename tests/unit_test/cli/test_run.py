"""`abe run`: handlers, signals and the health file."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
from typing import TYPE_CHECKING, Any

import pytest

from abe.backends.message_queue.base import MAX_HOLD
from abe.backends.message_queue.client import AsyncBackend
from abe.cli import worker
from abe.errors import ConnectionLostError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.unit_test.cli.support import Abe

HANDLERS = """
import abe

async def handle(message): ...
def plain(message): ...

class Audit:
    async def handle_event(self, event): ...

class Container:
    audit = Audit()

audit = Audit()
container = Container()
number = 3

def yields(message):
    yield

def nothing(): ...
"""


class TestHandler:
    """MODULE:HANDLER."""

    @pytest.fixture(autouse=True)
    def _modules(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        (tmp_path / "shop_handlers.py").write_text(HANDLERS)
        (tmp_path / "shop_missing.py").write_text("\nimport no_such_module_at_all\n")
        (tmp_path / "shop_syntax.py").write_text("x = (\n")
        (tmp_path / "shop_raises.py").write_text("def f():\n    return 1 / 0\nf()\n")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", sys.path[:])
        yield
        for name in [it for it in sys.modules if it.startswith("shop_")]:
            del sys.modules[name]

    @pytest.mark.parametrize("path", ["handle", "plain", "audit", "container.audit"])
    def test_found_in_the_working_directory(self, path: str) -> None:
        assert callable(worker.load_handler(f"shop_handlers:{path}"))

    @pytest.mark.parametrize(
        ("name", "problem"),
        [
            ("shop_handlers", "'shop_handlers' must look like MODULE:HANDLER"),
            (":handle", "':handle' must look like MODULE:HANDLER"),
            (
                "shop_handlers:handl",
                "shop_handlers:handl: there is no 'handl'; did you mean handle?",
            ),
            ("shop_handlers:container.x", "shop_handlers:container.x: there is no 'x'"),
            ("shop_handlers:Audit", "shop_handlers:Audit is the class Audit; give an instance"),
            ("shop_handlers:yields", "shop_handlers:yields contains 'yield'"),
            ("shop_handlers:number", "shop_handlers:number is int; it must be a function"),
            ("shop_handlers:nothing", "shop_handlers:nothing is called with one argument, the"),
            ("shop_handlers.x:y", "no module 'shop_handlers.x' is installed or in "),
            ("shop_nothing.x:y", "no module 'shop_nothing' is installed or in "),
        ],
    )
    def test_wrong(self, cli: Abe, name: str, problem: str) -> None:
        done = cli("run", name)
        assert done.status == 2
        assert f"Error: {problem}" in done.err

    @pytest.mark.parametrize(
        ("module", "problem", "line"),
        [
            ("shop_missing", "ModuleNotFoundError: No module named 'no_such_module_at_all'", 2),
            ("shop_syntax", "SyntaxError: '(' was never closed", 1),
            ("shop_raises", "ZeroDivisionError: division by zero", 2),
        ],
    )
    def test_import_fails(self, cli: Abe, module: str, problem: str, line: int) -> None:
        done = cli("run", f"{module}:handle")
        assert done.status == 1
        assert done.err.startswith(f"abe: importing {module} failed: {problem} (")
        assert done.err.endswith(f"{module}.py:{line})\n")
        assert done.err.count("\n") == 1

    @pytest.mark.parametrize(
        ("arguments", "status", "problem"),
        [
            (
                ["--log-level", "LOUD"],
                2,
                "'--log-level': 'LOUD' is not a log level; there are DEBUG",
            ),
            (["-c", "0"], 2, "--concurrency"),
            (["--drain-timeout", "-1"], 2, "'--drain-timeout': must be a number of seconds"),
            (["--health-file", "nowhere/file"], 1, "folder nowhere does not exist"),
            (["--dead-letter-key", "a b"], 1, "abe: key 'a b' contains ' '"),
            (["-k", "a b"], 1, "abe: key filter 'a b' is malformed"),
            (["-g", "", "-k", "a b"], 1, "abe: key filter 'a b' is malformed"),
            (["-b", "nope"], 1, "abe: no backend named 'nope' is installed"),
        ],
    )
    def test_refused(self, cli: Abe, arguments: list[str], status: int, problem: str) -> None:
        try:
            done = cli("run", "shop_handlers:handle", *arguments)
        finally:
            abe_logging_reset()
        assert done.status == status
        assert problem in done.err


def abe_logging_reset() -> None:
    """Undo what abe run has set up."""
    from abe.logging import reset_logging

    reset_logging()


class TestDrain:
    """What signals do to a worker."""

    def test_escalation(self, monkeypatch: pytest.MonkeyPatch) -> None:
        told: list[str] = []
        monkeypatch.setattr(worker, "_exit_soon", lambda status: told.append(f"soon {status}"))
        monkeypatch.setattr("os._exit", lambda status: told.append(f"exit {status}"))
        drain = worker.Drain()
        drain.act = lambda hurry: told.append("cancel" if hurry else "drain")
        for signum in (signal.SIGTERM, signal.SIGINT):
            drain(signum, None)
        assert told == ["drain", "soon 130", "cancel"]
        drain(signal.SIGINT, None)
        assert told[3] == "exit 130"


class FakeConsumer:
    """Counters, as a consumer has them."""

    concurrency = 2
    retried = dead = 0

    def __init__(self) -> None:
        self.processed = self.failed = self.in_flight = 0


class TestHealth:
    """--health-file."""

    def test_stalled_only_if_all_are_busy_for_too_long(self) -> None:
        consumer: Any = FakeConsumer()
        backend: Any = None
        stalled = worker.Health(backend, consumer)._stalled
        consumer.in_flight = 2
        assert not stalled(0.0)
        assert not stalled(MAX_HOLD)
        assert stalled(MAX_HOLD + 1)
        consumer.processed = 1
        assert not stalled(MAX_HOLD + 2)
        assert stalled(2 * MAX_HOLD + 3)
        consumer.in_flight = 1
        assert not stalled(3 * MAX_HOLD)

    @pytest.mark.parametrize("logs", [True, False])
    def test_file_is_renewed_while_the_broker_answers(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        logs: bool,
    ) -> None:
        def log(record: logging.LogRecord) -> bool:
            if not logs:
                raise RuntimeError("a filter of the application")
            return True

        monkeypatch.setattr(worker.logger, "filters", [log])
        path = tmp_path / "health"
        path.write_text("of an earlier worker")
        answers = asyncio.Event()
        pinged = asyncio.Event()
        monkeypatch.setattr(worker, "HEALTH_INTERVAL", 0.0)

        class Backend:
            async def ping(self, timeout: float = 5.0) -> None:
                pinged.set()
                if not answers.is_set():
                    raise ConnectionLostError("gone")

        async def main() -> None:
            consumer: Any = FakeConsumer()
            plain: Any = Backend()
            async with worker.Health(AsyncBackend(plain), consumer).shown_in(path):
                await asyncio.wait_for(pinged.wait(), 30)
                assert not path.exists()
                answers.set()
                pinged.clear()
                await asyncio.wait_for(pinged.wait(), 30)
                await asyncio.sleep(0)
                assert json.loads(path.read_text())["processed"] == 0

        asyncio.run(main())
        assert list(tmp_path.iterdir()) == []
        assert caplog.text.count("unhealthy: gone") == logs
