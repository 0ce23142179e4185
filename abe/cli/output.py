"""The output of a command: data on standard output, everything else on standard error."""

from __future__ import annotations

import errno
import os
import select
import shutil
import sys

from abe._redact import known
from abe.display.table import Table
from abe.display.text import MAX_LINE, visible
from abe.errors import AbeError


class OutputClosed(Exception):
    """The reader of standard output has gone."""


class OutputError(AbeError):
    """Standard output cannot be written."""


def writes_to_terminal() -> bool:
    """Return whether standard output is a terminal."""
    return sys.stdout is not None and sys.stdout.isatty()


def emit(text: str) -> None:
    """Write ``text`` to standard output; when it returns, the system has all of it."""
    try:
        _write(text.encode(errors="backslashreplace"))
    except BrokenPipeError:
        raise OutputClosed from None
    except OSError as error:
        if error.errno == errno.EINVAL and os.name == "nt":  # how Windows says EPIPE
            raise OutputClosed from None
        raise OutputError(f"cannot write to standard output: {error.strerror}") from None


def _write(data: bytes) -> None:
    stream = sys.stdout
    if stream is None:
        raise OutputError("standard output is closed")
    try:
        descriptor = stream.fileno()
    except (OSError, AttributeError):  # replaced, e.g. by a test
        descriptor = None
    # Only Python's own stream knows the encoding of a console of Windows. Elsewhere its buffer is
    # avoided: after a failure it would fail once more, at exit.
    if descriptor is None or (os.name == "nt" and stream.isatty()):
        stream.write(data.decode())
        stream.flush()
        return
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:  # the pipe was made non-blocking elsewhere
            select.select([], [descriptor], [])


def emit_line(text: str) -> None:
    """Write one line to standard output."""
    emit(f"{text}\n")


def emit_table(table: Table) -> None:
    """Write a table and its notes; the caption alone if it has no rows."""
    # On a terminal cells are folded; programs get one line a row.
    width = shutil.get_terminal_size().columns if writes_to_terminal() else None
    lines = [*table.lines(width), *table.notes] if table.rows else [table.caption]
    emit_line("\n".join(lines))


def clean(text: str) -> str:
    """Return the text without secrets, those of the environment included, on one line."""
    known.learn(os.environ)
    return " ".join(known.hide(text).split("\n"))


def say(text: str) -> None:
    """Write a remark, which is not data, to standard error: one line without secrets."""
    if sys.stderr is not None:
        print(visible(clean(text), MAX_LINE), file=sys.stderr)  # noqa: T201
