"""``abe consume``: write messages, and ack each once its line is out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from abe.backends.message_queue.client import AsyncBackend
from abe.backends.message_queue.handling.threads import DaemonThreads
from abe.cli.output import emit, would_block
from abe.display.lines import message_json, message_text

__all__ = ["Consumption", "consume"]

MIN_WAIT = 0.1


@dataclass(frozen=True, slots=True)
class Consumption:
    """What to consume, and when to stop.

    Attributes:
        keys: Only keys that match one of these; empty for all.
        group: The consumer group.
        number: Most messages; ``None`` for no limit.
        timeout: Longest wait for the first message, in seconds; ``None`` waits for ever.
        quiet: Longest wait for each further one.
        as_lines: Write JSON, not text for a person.
    """

    keys: Sequence[str]
    group: str | None
    number: int | None
    timeout: float | None
    quiet: float | None
    as_lines: bool


async def consume(backend: AsyncBackend, wanted: Consumption) -> int:
    """Write messages to standard output and return how many were acked.

    A message whose line could not be written is given back.
    """
    if wanted.timeout is not None and hasattr(backend.backend, "ping"):
        # A stream waits for a broker to come back; a command with a time limit has to say so.
        await backend.ping(max(wanted.timeout, 5.0))
    prefetch = None
    if wanted.number is not None and backend.capabilities.attempts != "upper":
        prefetch = min(wanted.number, 512)  # what is not asked for stays with the others
    stream = backend.consume(wanted.keys or None, group=wanted.group, prefetch=prefetch)
    form = message_json if wanted.as_lines else message_text
    threads = DaemonThreads("abe-output")
    acked = 0
    try:
        async with stream:
            while wanted.number is None or acked < wanted.number:
                patience = wanted.quiet if acked else wanted.timeout
                # Less would end before what is there has come across.
                patience = None if patience is None else max(patience, MIN_WAIT)
                taken = await stream.take(1, patience)
                if not taken:
                    break
                await _write(f"{form(taken[0])}\n", threads)
                await taken[0].ack()
                acked += 1
    finally:
        threads.close()
    return acked


async def _write(line: str, threads: DaemonThreads) -> None:
    """Write a line without blocking the loop, which extends leases while a slow reader reads."""
    if would_block(len(line.encode())):
        await threads.submit(emit, line)
    else:
        emit(line)
