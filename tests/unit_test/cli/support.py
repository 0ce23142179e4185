"""The command line in this process, on a memory store of its own."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from typing import Any

from typer.testing import CliRunner

from abe.cli.app import app

_stores = itertools.count()


@dataclass
class Outcome:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def records(self) -> list[dict[str, Any]]:
        """The JSON lines on standard output."""
        return [json.loads(line) for line in self.out.splitlines()]


class Abe:
    """The command line, on a memory store of its own."""

    def __init__(self) -> None:
        self.env = {"QUEUE_BACKEND": "memory", "ABE_MEMORY_NAME": f"cli-{next(_stores)}"}

    def __call__(self, *arguments: str, input: str | bytes = b"", **env: str) -> Outcome:
        """Run a command to its end."""
        done = CliRunner(env={**self.env, **env}).invoke(app, arguments, input=input)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return Outcome(done.exit_code, done.stdout, done.stderr)

    def ok(self, *arguments: str, input: str | bytes = b"", **env: str) -> Outcome:
        """Run a command that must succeed."""
        done = self(*arguments, input=input, **env)
        assert done.status == 0, done
        return done

    def payloads(self, group: str = "") -> list[Any]:
        """What waits for a group."""
        return [it["payload"] for it in self.ok("peek", "-g", group, "-n", "1000").records]

    def numbers(self) -> dict[str, Any]:
        """The numbers of the default group's only key."""
        (entry,) = self.ok("stats", "-g", "", "--json").records
        return entry


UNREACHABLE = """
import abe

class Backend:
    @classmethod
    def from_env(cls):
        return cls()

    async def publish(self, key, payload):
        raise AssertionError

    async def consume(self, *, group=None):
        raise AssertionError
        yield {}

    async def ping(self, timeout=5.0):
        raise abe.ConnectionLostError("gone does not answer at redis://user:pa55word@host")
"""
