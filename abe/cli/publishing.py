"""``abe publish``: read payloads, check them, send them, and say exactly what was sent."""

from __future__ import annotations

import io
import json
import re
import select
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol, cast

from abe.backends.message_queue.base import encode_payload, validate_key
from abe.backends.message_queue.client import AsyncBackend
from abe.backends.message_queue.handling.threads import DaemonThreads
from abe.display.text import cell, plural
from abe.errors import AbeError, ConnectionLostError, PayloadError, PublishError

__all__ = [
    "Item",
    "Lines",
    "Publication",
    "Source",
    "checked",
    "document",
    "open_input",
    "publish_items",
    "publish_lines",
    "read_all",
    "standard_input",
]

CHUNK = 64 * 1024
"""Most bytes that are read, and published, in one go."""
MAX_LINE = 64 * 1024 * 1024
"""Longest line: what is kept in memory."""
SPOOL = 8 * 1024 * 1024
"""Size from which input that cannot be read twice is kept in a file."""

_POSITION = re.compile(r"\Aitem (\d+): ")


class Source(Protocol):
    """Where lines come from: something like an unbuffered binary file."""

    def read(self, size: int, /) -> bytes | None:
        """Return what is there, at most ``size`` bytes; nothing at the end."""
        ...

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Go to a position and return it."""
        ...

    def fileno(self) -> int:
        """Return the file's descriptor."""
        ...


class Item(NamedTuple):
    """A payload and where it stands, e.g. ``line 3``."""

    number: int
    payload: dict[str, Any]


@dataclass(slots=True)
class Publication:
    """What is published, and how far it has come.

    Attributes:
        key: The routing key.
        extras: Headers and delay, where given.
        unit: What positions count: ``line`` or ``item``.
        total: Number of messages, if it is known.
        last: Number of the last line or item, if it is known.
        published: Number of messages that the broker has accepted.
    """

    key: str
    extras: Mapping[str, Any] = field(default_factory=dict)
    unit: str = "line"
    total: int | None = None
    last: int | None = None
    published: int = 0

    def __post_init__(self) -> None:
        validate_key(self.key)

    @property
    def progress(self) -> str:
        """How far it has come, for errors."""
        if self.total is None:
            return f"published {plural(self.published, 'message')}"
        return f"published {self.published:,} of {plural(self.total, 'message')}"


# --- Reading --------------------------------------------------------------------------------------


def document(text: str | bytes) -> list[dict[str, Any]]:
    """Return the payloads of one JSON document: an object, or a list of objects.

    Raises:
        PayloadError: If it is anything else, or not exactly representable.
    """
    value = _parse(text)
    if isinstance(value, dict):
        encode_payload(value)
        return [value]
    if not isinstance(value, list):
        raise PayloadError(f"not a JSON object and no list of them: {cell(str(text), 40)}")
    for position, item in enumerate(value):
        try:
            encode_payload(item)
        except PayloadError as error:
            raise PayloadError(f"item {position}: {error}") from None
    return value


def _parse(text: str | bytes) -> Any:
    try:
        # Programs of Windows put a byte order mark at the beginning.
        whole = text.decode("utf-8-sig") if isinstance(text, bytes) else text
    except UnicodeDecodeError as error:
        raise PayloadError(f"not UTF-8: byte {error.start + 1}") from None
    try:
        return json.loads(whole, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        raise PayloadError(_explain(whole, error)) from None
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


def standard_input() -> Source | None:
    """Return standard input as bytes; ``None`` if there is none, or a person would have to type.

    Unbuffered: a thread that waits in a read holds a buffer's lock, and an interpreter that cannot
    get it at exit crashes.
    """
    stream = sys.stdin
    if stream is None or stream.closed or stream.isatty():
        return None
    try:
        return io.FileIO(stream.fileno(), closefd=False)
    except (OSError, AttributeError):  # replaced, e.g. by a test
        return stream.buffer


@contextmanager
def open_input(path: Path | None) -> Iterator[Source | None]:
    """Give a file, or standard input, as bytes; None if there is neither.

    Raises:
        PayloadError: If the file cannot be read.
    """
    if path is None:
        yield standard_input()
        return
    try:
        file = io.FileIO(path)
    except OSError as error:
        raise PayloadError(f"cannot read {path}: {error.strerror}") from None
    with file:
        yield file


class Lines:
    """Splits bytes as they come into numbered lines, blank ones left out."""

    def __init__(self) -> None:
        self.number = 0
        self._rest: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield the lines that ``chunk`` completes; without any bytes, the unfinished last one.

        Raises:
            PayloadError: If a line does not end.
        """
        *complete, rest = chunk.split(b"\n") if chunk else (b"", b"")
        for line in complete:
            whole = b"".join([*self._rest, line])
            self._rest, self._size = [], 0
            self.number += 1
            if whole.strip():
                yield self.number, whole
        self._rest.append(rest)
        self._size += len(rest)
        if self._size > MAX_LINE:
            raise PayloadError(f"line {self.number + 1} is longer than {MAX_LINE >> 20} MiB")


def _item(number: int, line: bytes) -> Item:
    """Return the payload of a line.

    Raises:
        PayloadError: If it is not a JSON object; the text names the line.
    """
    try:
        payload = _parse(line)
        if not isinstance(payload, dict):
            raise PayloadError(f"not a JSON object: {cell(line.decode(), 60)}")
    except PayloadError as error:
        raise PayloadError(f"line {number}: {error}") from None
    return Item(number, payload)


@contextmanager
def checked(source: Source, what: Publication) -> Iterator[Source]:
    """Read all lines, check and count them, and give what they can be read from again.

    Raises:
        PayloadError: If a line is not a payload; nothing has been published then.
    """
    try:
        start = source.seek(0, io.SEEK_CUR)
    except OSError:  # a pipe
        with tempfile.SpooledTemporaryFile(SPOOL) as copy:
            _check(source, what, copy)
            copy.seek(0)
            yield cast(Source, copy)
    else:
        _check(source, what, None)
        source.seek(start)
        yield source


def _check(source: Source, what: Publication, copy: IO[bytes] | None) -> None:
    lines, what.total = Lines(), 0
    while True:
        chunk = _read(source)
        if copy is not None:
            copy.write(chunk)
        for number, line in lines.feed(chunk):
            payload = _item(number, line).payload
            try:
                encode_payload(payload)
            except PayloadError as error:
                raise PayloadError(f"line {number}: {error}") from None
            what.total += 1
            what.last = number
        if not chunk:
            break


def read_all(source: Source) -> bytes:
    """Return everything that is left."""
    return b"".join(iter(lambda: _read(source), b""))


def _read(source: Source) -> bytes:
    """Return the next bytes, waiting for them; nothing at the end."""
    while (chunk := source.read(CHUNK)) is None:  # somebody else has made it non-blocking
        select.select([source], [], [])
    return chunk


# --- Sending --------------------------------------------------------------------------------------


async def publish_lines(backend: AsyncBackend, source: Source, what: Publication) -> None:
    """Publish lines as they come, in order, holding no more than one chunk of them.

    Raises:
        AbeError: If a line is no payload or is not accepted; the text says what was published.
    """
    threads = DaemonThreads("abe-input")
    lines = Lines()
    chunk = b"."
    try:
        while chunk:
            chunk = await threads.submit(_read, source)
            batch: list[Item] = []
            problem: PayloadError | None = None
            try:
                for number, line in lines.feed(chunk):
                    batch.append(_item(number, line))
            except PayloadError as error:
                problem = error
            await publish_items(backend, batch, what)
            if problem is not None:
                raise PayloadError(f"{problem}; {what.progress}, all before it")
    finally:
        threads.close()


async def publish_items(backend: AsyncBackend, items: Sequence[Item], what: Publication) -> None:
    """Publish items in order.

    Raises:
        AbeError: If one is not accepted; the text says which, and what was published.
    """
    if what.extras or what.total == 1:
        for item in items:
            await _publish_one(backend, item, what)
    elif items:
        await _publish_together(backend, items, what)


async def _publish_one(backend: AsyncBackend, item: Item, what: Publication) -> None:
    try:
        await backend.publish(what.key, item.payload, **what.extras)
    except AbeError as error:
        if what.total == 1:
            raise
        text = f"{what.unit} {item.number}: {error}; {what.progress}, all before it"
        raise PublishError(text) from error
    what.published += 1


async def _publish_together(
    backend: AsyncBackend, items: Sequence[Item], what: Publication
) -> None:
    numbers = [item.number for item in items]
    try:
        await backend.publish_many([item.payload for item in items], key=what.key)
    except PublishError as error:
        what.published += len(error.published)
        raise PublishError(_account(numbers, error, what)) from error
    except ConnectionLostError as error:
        text = f"{error}; {what.progress}, and perhaps some of {_span(what.unit, numbers)}"
        raise PublishError(text) from error
    except AbeError as error:  # refused before anything of this batch was sent
        text = _POSITION.sub(lambda m: f"{what.unit} {numbers[int(m[1])]}: ", str(error))
        raise PublishError(f"{text}; {what.progress}, all before {numbers[0]}") from error
    what.published += len(items)


def _account(numbers: Sequence[int], error: PublishError, what: Publication) -> str:
    """Say which items were not accepted."""
    accepted = set(error.published)
    missing = [number for n, number in enumerate(numbers) if n not in accepted]
    if not error.failed:
        return f"{error}; {what.progress}, and perhaps some of {_span(what.unit, missing)}"
    first = min(error.failed)
    rest = "" if numbers[-1] == what.last else f" and all after {numbers[-1]}"
    return (
        f"{what.unit} {numbers[first]}: {cell(error.failed[first], 500)}; {what.progress}; "
        f"not published: {_span(what.unit, missing)}{rest}"
    )


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
