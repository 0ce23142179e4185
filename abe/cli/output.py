"""The output of a command: data on standard output, everything else on standard error."""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from collections.abc import Callable

from abe.display.table import Table
from abe.display.text import MAX_LINE, visible
from abe.errors import AbeError

__all__ = [
    "OutputClosed",
    "OutputError",
    "emit",
    "emit_line",
    "emit_table",
    "say",
    "would_block",
    "writes_to_terminal",
]


class OutputClosed(Exception):
    """The reader of standard output has gone."""


class OutputError(AbeError):
    """Standard output cannot be written."""


def writes_to_terminal() -> bool:
    """Return whether standard output is a terminal."""
    return sys.stdout is not None and sys.stdout.isatty()


def emit(text: str) -> None:
    """Write ``text`` to standard output; when it returns, the system has all of it.

    Raises:
        OutputClosed: If the reader of the pipe has gone.
        OutputError: If it cannot be written, e.g. to a full disk.
    """
    try:
        _writer()(text.encode(errors="backslashreplace"))
    except BrokenPipeError:
        raise OutputClosed from None
    except OSError as error:
        if error.errno == errno.EINVAL and os.name == "nt":  # how Windows says EPIPE
            raise OutputClosed from None
        raise OutputError(f"cannot write to standard output: {error.strerror}") from None


def _writer() -> Callable[[bytes], object]:
    """Return a function that writes to standard output, without Python's buffer where possible.

    A thread that is blocked in a write holds the buffer's lock, and an interpreter that cannot get
    it at exit crashes.
    """
    stream = sys.stdout
    if stream is None:
        raise OutputError("standard output is closed")
    try:
        descriptor = stream.fileno()
    except (OSError, AttributeError):  # replaced, e.g. by a test
        return lambda data: (stream.write(data.decode()), stream.flush())
    if os.name == "nt" and stream.isatty():  # only Python's own stream knows the console's encoding
        return lambda data: (stream.write(data.decode()), stream.flush())
    return lambda data: _write_all(descriptor, data)


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:  # the pipe was made non-blocking elsewhere
            select.select([], [descriptor], [])


def would_block(size: int) -> bool:
    """Return whether writing ``size`` bytes to standard output may block now."""
    if size > getattr(select, "PIPE_BUF", 0):
        return True
    try:
        return not select.select([], [sys.stdout.fileno()], [], 0)[1]
    except (OSError, AttributeError, ValueError):
        return True


def emit_line(text: str) -> None:
    """Write one line to standard output."""
    emit(f"{text}\n")


def emit_table(table: Table) -> None:
    """Write a table and its notes; the caption alone if it has no rows."""
    if not table.rows:
        emit_line(table.caption)
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table as Grid
    from rich.text import Text

    grid = Grid(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, show_header=any(table.columns))
    for column in table.columns:
        grid.add_column(column, overflow="fold")
    for row in table.rows:
        grid.add_row(*map(Text, row))
    # Into a string first: at a broken pipe rich would end the process.
    target = io.StringIO()
    terminal = writes_to_terminal()
    width = None if terminal else 10_000  # programs get one line a row
    console = Console(file=target, width=width, force_terminal=terminal, highlight=False)
    console.print(grid)
    lines = [line.rstrip() for line in target.getvalue().splitlines()]
    emit("".join(f"{line}\n" for line in (*lines, *table.notes)))


def say(text: str) -> None:
    """Write a remark, which is not data, to standard error."""
    if sys.stderr is not None:
        for line in text.splitlines():
            print(visible(line, MAX_LINE), file=sys.stderr)  # noqa: T201
