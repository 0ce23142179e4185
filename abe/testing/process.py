"""Processes that die of SIGKILL while they use a backend, for the hooks of a `Harness`."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from typing import IO

from abe.types import ConsumerGroup

__all__ = ["kill_consumer", "kill_publisher"]

START = 30.0
"""Seconds a process may take until it holds or has published what it should."""


async def kill_consumer(
    name: str, env: Mapping[str, str], group: ConsumerGroup, count: int
) -> None:
    """Have a process take ``count`` messages of ``group`` from an installed backend, and kill it.

    Args:
        name: The backend, as `abe.load_backend` knows it.
        env: Environment variables that configure it.
        group: The consumer group.
        count: How many messages the process holds, unsettled, when it dies.
    """
    await asyncio.to_thread(_run, name, env, ["consume", json.dumps(group), str(count)], _held)


async def kill_publisher(name: str, env: Mapping[str, str], key: str, count: int = 20) -> int:
    """Have a process publish ``{"n": 0}``, ``{"n": 1}`` … and kill it while it goes on.

    Args:
        name: The backend, as `abe.load_backend` knows it.
        env: Environment variables that configure it.
        key: The routing key.
        count: After how many it is killed, at the earliest.

    Returns:
        For how many ``publish`` had returned, as far as the process could still tell.
    """

    def told(output: IO[str]) -> int:
        return _last(output, lambda line: int(line) >= count)

    return await asyncio.to_thread(_run, name, env, ["publish", key], told)


def _held(output: IO[str]) -> int:
    return _last(output, lambda line: line == "holding")


def _last(output: IO[str], enough: Callable[[str], bool]) -> int:
    """Read lines until one is enough; the process waits or goes on, it never ends by itself."""
    for line in output:
        if enough(line.strip()):
            return int(line) if line.strip().isdigit() else 0
    raise AssertionError("the process ended before it could be killed; see its standard error")


def _run(
    name: str, env: Mapping[str, str], arguments: list[str], until: Callable[[IO[str]], int]
) -> int:
    command = [sys.executable, "-m", "abe.testing.child", name, *arguments]
    with subprocess.Popen(  # noqa: S603 - our own interpreter and module
        command, env={**os.environ, **env}, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        overdue = threading.Timer(START, process.kill)  # reading would otherwise wait for ever
        overdue.start()
        try:
            told = until(process.stdout)
        finally:
            overdue.cancel()
            process.kill()
        for line in process.stdout:  # what it had said before the signal reached it
            if line.endswith("\n") and line.strip().isdigit():
                told = max(told, int(line))
        return told
