"""A queue file of one's own, and child processes that are gone when the test is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from abe.backends.message_queue.service.sqlite import schema as _sqlite_schema

PRELUDE = """\
import asyncio, ctypes, os, sys, time
from contextlib import closing
from pathlib import Path
from abe.backends.message_queue.service.sqlite import SQLiteBackend
from abe.errors import AbeError, LoopError, PublishError

def say(*words):
    print(*words, flush=True)

def hear():
    return sys.stdin.readline().strip()

"""


LOCKED = """
import fcntl
SHARED_FIRST, SHARED_SIZE = 0x40000002, 510
with open(sys.argv[1], "r+b") as file:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, SHARED_SIZE, SHARED_FIRST)
    except OSError:
        say("locked")
    else:
        say("free")
"""
"""Whether any process has the lock by which SQLite knows that a file is in use."""


class Child:
    """A Python process that runs a script with `SQLiteBackend`, ``say`` and ``hear`` at hand."""

    def __init__(self, script: str, *args: object, **options: Any) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + script, *map(str, args)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
            **options,
        )

    def hear(self) -> str:
        """Return the next line it says."""
        assert self.process.stdout is not None
        return str(self.process.stdout.readline()).strip()

    def say(self, text: str = "") -> None:
        """Send it a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def end(self) -> str:
        """Wait until it ends by itself, in success, and return what else it says."""
        out, _ = self.process.communicate(timeout=30)
        assert self.process.returncode == 0
        return str(out).strip()

    def kill(self) -> None:
        """Kill it at once."""
        self.process.kill()
        self.process.communicate()


@pytest.fixture(autouse=True)
def _no_patience_with_bad_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sqlite_schema, "SETTLING_SECONDS", 0.002)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the queue file is to be."""
    return tmp_path / "queue.sqlite3"


@pytest.fixture
def child() -> Iterator[Callable[..., Child]]:
    """Start a child process; see `Child`."""
    children: list[Child] = []

    def start(script: str, *args: object, **options: Any) -> Child:
        children.append(Child(script, *args, **options))
        return children[-1]

    yield start
    for one in children:
        if one.process.poll() is None:
            one.process.kill()
        one.process.communicate()


@pytest.fixture
def locked(path: Path, child: Callable[..., Child]) -> Callable[[], str]:
    """Say whether any process has the queue file in use, as other processes see it."""
    return lambda: child(LOCKED, path).end()


@pytest.fixture
def snapshot(tmp_path: Path) -> Callable[[], dict[str, bytes]]:
    """Return every file beside the queue file, and its bytes."""
    return lambda: {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
