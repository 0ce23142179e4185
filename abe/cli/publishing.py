"""``abe publish``: read payloads, prepare them, send them, and say exactly what was sent."""

from __future__ import annotations

import io
import json
import marshal
import re
import select
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from abe.backends.message_queue.base import Outgoing
from abe.backends.message_queue.base.outgoing import Label, item_label, no_label
from abe.display.text import cell, plural, unique_names
from abe.errors import AbeError, ConnectionLostError, PayloadError, PublishError
from abe.sync import SyncBackend

CHUNK = 64 * 1024
"""Most bytes that are read in one go."""
MAX_LINE = 64 * 1024 * 1024
"""Longest line: what is kept in memory."""
SPOOL = 8 * 1024 * 1024
"""Size from which what is prepared is kept in a file."""
SLICE = 1000
"""Most messages that are sent in one go: so exact is what an interrupt leaves behind."""

_POSITION = re.compile(r"\Aitem (\d+): ")


Source = io.RawIOBase | BinaryIO
"""Where payloads come from; what is read unbuffered is there as soon as it was written."""


class Part(NamedTuple):
    """Messages that are ready to be sent, and where each stands, e.g. in line 3."""

    numbers: Sequence[int]
    prepared: Sequence[Outgoing]


class Publication:
    """What is published, and how far it has come.

    Attributes:
        unit: What numbers count: ``line`` or ``item``.
        total: Number of messages, if it is known.
        last: Number of the last line or item, if it is known.
        published: Number of messages that the broker has accepted.
    """

    def __init__(
        self,
        backend: SyncBackend,
        key: str,
        *,
        headers: Mapping[str, str] | None = None,
        delay: float = 0.0,
    ) -> None:
        self._backend = backend
        self._key = key
        self._headers = headers
        self._delay = delay
        self.unit = "line"
        self.total: int | None = None
        self.last: int | None = None
        self.published = 0
        self._prepare((), no_label)

    @property
    def progress(self) -> str:
        """How far it has come, for errors."""
        if self.total is None:
            return f"published {plural(self.published, 'message')}"
        return f"published {self.published:,} of {plural(self.total, 'message')}"

    # -- preparing -------------------------------------------------------------------------

    def document(self, text: str | bytes) -> Part:
        """Prepare one JSON document: an object, or a list of objects."""
        value = _parse(text)
        if isinstance(value, dict):
            items, label = [value], no_label
        elif isinstance(value, list):
            items, label = value, item_label
        else:
            raise PayloadError(f"not a JSON object and no list of them: {cell(str(text), 40)}")
        self.unit, self.total, self.last = "item", len(items), len(items) - 1
        return Part(range(len(items)), self._prepare(items, label))

    def send_checked(self, source: Source) -> None:
        """Publish all lines, after preparing every one."""
        self.total = 0
        with tempfile.SpooledTemporaryFile(SPOOL) as kept:
            for lines in batches(source):
                part, problem = self._lines(lines)
                if problem is not None:
                    raise problem
                if part.numbers:
                    marshal.dump(([*part.numbers], [item.body for item in part.prepared]), kept)
                    self.total += len(part.numbers)
                    self.last = part.numbers[-1]
            marshal.dump(None, kept)
            kept.seek(0)
            (template,) = self._prepare([{}], no_label)
            while (entry := marshal.load(kept)) is not None:  # noqa: S302 - it is our own
                numbers, bodies = entry
                self.send([Part(numbers, [template._replace(body=body) for body in bodies])])

    def _lines(self, lines: list[tuple[int, bytes]]) -> tuple[Part, PayloadError | None]:
        """Prepare lines up to the first bad one."""
        numbers: list[int] = []

        def payloads() -> Iterator[dict[str, Any]]:
            for number, line in lines:
                numbers.append(number)
                yield _object(line)

        try:
            return Part(numbers, self._prepare(payloads(), lambda _: f"line {numbers[-1]}")), None
        except PayloadError as error:
            return self._lines(lines[: len(numbers) - 1])[0], error

    def _prepare(self, payloads: Iterable[Any], label: Label) -> list[Outgoing]:
        return self._backend.prepare(
            payloads, key=self._key, headers=self._headers, delay=self._delay, label=label
        )

    # -- sending ---------------------------------------------------------------------------

    def send(self, parts: Iterable[Part]) -> None:
        """Publish ``parts`` in order."""
        for numbers, prepared in parts:
            for n in range(0, len(numbers), SLICE):
                self._send(numbers[n : n + SLICE], prepared[n : n + SLICE])

    def follow(self, source: Source) -> None:
        """Publish lines as they come, in order, holding no more than one chunk of them."""
        for lines in batches(source):
            part, problem = self._lines(lines)
            self.send([part])
            if problem is not None:
                raise PayloadError(f"{problem}; {self.progress}, all before it")

    def _send(self, numbers: Sequence[int], prepared: Sequence[Outgoing]) -> None:
        try:
            self._backend.send(prepared)
        except AbeError as error:
            if self.total == 1:
                raise
            raise PublishError(self._account(numbers, error)) from error
        self.published += len(prepared)

    def _account(self, numbers: Sequence[int], error: AbeError) -> str:
        """Say which items were not accepted."""
        if isinstance(error, PublishError):
            self.published += len(error.published)
            accepted = set(error.published)
            missing = [number for n, number in enumerate(numbers) if n not in accepted]
            if error.failed:
                first = min(error.failed)
                rest = "" if numbers[-1] == self.last else f" and all after {numbers[-1]}"
                return (
                    f"{self.unit} {numbers[first]}: {cell(error.failed[first], 500)}; "
                    f"{self.progress}; not published: {_span(self.unit, missing)}{rest}"
                )
        elif isinstance(error, ConnectionLostError):
            missing = list(numbers)
        else:  # refused before anything of this part was sent
            text = _POSITION.sub(lambda m: f"{self.unit} {numbers[int(m[1])]}: ", str(error))
            return f"{text}; {self.progress}, all before {numbers[0]}"
        return f"{error}; {self.progress}, and perhaps some of {_span(self.unit, missing)}"


def _object(line: bytes) -> dict[str, Any]:
    value = _parse(line)
    if isinstance(value, dict):
        return value
    raise PayloadError(f"not a JSON object: {cell(line.decode(), 60)}")


def _parse(text: str | bytes) -> Any:
    try:
        # Programs of Windows put a byte order mark at the beginning.
        whole = text.decode("utf-8-sig") if isinstance(text, bytes) else text
    except UnicodeDecodeError as error:
        raise PayloadError(f"not UTF-8: byte {error.start + 1}") from None
    try:
        return json.loads(whole, parse_constant=_refuse, object_pairs_hook=unique_names)
    except json.JSONDecodeError as error:
        raise PayloadError(_explain(whole, error)) from None
    except PayloadError:
        raise
    except (ValueError, RecursionError) as error:
        raise PayloadError(f"not JSON: {error}") from None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not in JSON; use null or a string")


def _explain(text: str, error: json.JSONDecodeError) -> str:
    where = f"line {error.lineno} column {error.colno}" if "\n" in text else f"column {error.colno}"
    problem = f"not JSON: {error.msg} at {where}: {cell(text, 60)}"
    if text.startswith(("{", "[")) and '"' not in text:
        problem += """; quote it for the shell: '{"id": 1}'"""
    return problem


def open_input(path: Path | None) -> Source | None:
    """Open a file, or standard input; ``None`` if a person would have to type there."""
    stream = sys.stdin
    if path is None and (stream is None or stream.closed or stream.isatty()):
        return None
    try:
        return io.FileIO(path) if path else io.FileIO(stream.fileno(), closefd=False)
    except io.UnsupportedOperation:  # replaced, e.g. by a test
        return stream.buffer
    except OSError as error:
        raise PayloadError(f"cannot read {path}: {error.strerror}") from None


def batches(source: Source) -> Iterator[list[tuple[int, bytes]]]:
    """Yield the lines of the input as they come, with their numbers; blank ones are left out."""
    parts: list[bytes] = []
    number = size = 0
    chunk = b"."
    while chunk:
        chunk = _read(source)
        *complete, rest = chunk.split(b"\n") if chunk else (b"", b"")
        lines: list[tuple[int, bytes]] = []
        for line in complete:
            whole = b"".join([*parts, line])
            parts, size = [], 0
            number += 1
            if whole.strip():
                lines.append((number, whole))
        yield lines
        parts.append(rest)
        size += len(rest)
        if size > MAX_LINE:
            raise PayloadError(f"line {number + 1} is longer than {MAX_LINE >> 20} MiB")


def read_all(source: Source) -> bytes:
    """Return everything that is left."""
    return b"".join(iter(lambda: _read(source), b""))


def _read(source: Source) -> bytes:
    """Return the next bytes, waiting for them; nothing at the end."""
    while (chunk := source.read(CHUNK)) is None:  # somebody else has made it non-blocking
        select.select([source], [], [])
    return chunk


def _span(unit: str, numbers: Sequence[int]) -> str:
    """Return e.g. ``lines 3-7, 9``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    shown = ", ".join("-".join(map(str, run)) for run in runs[:20])
    more = f" and {len(runs) - 20} more ranges" if runs[20:] else ""
    return f"{unit}{'s' if len(numbers) > 1 else ''} {shown}{more}"
