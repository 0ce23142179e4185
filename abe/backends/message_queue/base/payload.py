"""Payloads and headers: JSON only, and exactly what was published or an error naming the path."""

from __future__ import annotations

import json
import marshal
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from abe.errors import PayloadError
from abe.types import MessageQueuePayload

__all__ = [
    "MAX_DEPTH",
    "check_headers",
    "decode_payload",
    "encode_payload",
    "freeze_payload",
    "thaw_payload",
]

MAX_DEPTH = 100
"""Deepest nesting of objects and arrays that a payload may have."""
MAX_DIGITS = 4300
"""Longest number that every process reads, whatever limit of digits this interpreter has."""


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _encoder() -> Callable[[object, int], Iterable[str]]:
    """Return what makes the pieces of `json.JSONEncoder.encode`, set up once and for all."""
    plain = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    c_make_encoder: Any = getattr(json.encoder, "c_make_encoder", None)
    try:
        encode = c_make_encoder(
            None, plain.default, json.encoder.encode_basestring, None, ":", ",", False, False, False
        )
        assert "".join(encode({"a": [1.5, None, "é"]}, 0)) == '{"a":[1.5,null,"é"]}'
    except (TypeError, AttributeError, AssertionError):  # not CPython, or another signature
        return lambda payload, level: plain.encode(payload)
    pieces: Callable[[object, int], Iterable[str]] = encode
    return pieces


_pieces = _encoder()
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
_long_number = re.compile(rf"\d{{{MAX_DIGITS + 1}}}").search
_TOO_LARGE = 10**MAX_DIGITS
_SCALARS: frozenset[type] = frozenset({str, int, float, bool, type(None)})
_HARMLESS: frozenset[type] = frozenset({str, bool, type(None)})
"""Scalars whose value needs no look: only what a string contains does."""
_LARGE = 2**63
_FORMAT = 2
"""Of `marshal`: later ones look for what occurs twice, which takes longer than it saves."""
_SURROGATE = b"\xed"
"""What the UTF-8 of a surrogate begins with, and that of some letters."""
_decoder = json.JSONDecoder(parse_constant=_refuse)
_scan: Callable[[str, int], tuple[Any, int]] = _decoder.scan_once  # type: ignore[attr-defined]


def _decode(text: str) -> Any:
    try:
        # Leaves out the search for white space around the text, a third of the time.
        value, end = _scan(text, 0)
    except StopIteration:
        value, end = None, -1
    return value if end == len(text) else _decoder.decode(text)


def encode_payload(payload: MessageQueuePayload) -> str:
    """Return ``payload`` as JSON text that decodes to an equal value.

    Raises:
        PayloadError: If it would not: NaN, infinities, keys that are not strings, bytes, sets,
            tuples, cycles, lone surrogates, more than `MAX_DEPTH` levels. The text names the path.
    """
    text = ""
    try:
        if type(payload) is dict and _exact(payload, MAX_DEPTH, _SCALARS):
            text = "".join(_pieces(payload, 0))
            if not text.isascii():
                text.encode()  # refuses lone surrogates, with a ValueError
            if len(text) <= MAX_DIGITS or not _may_hold_a_long_number(text):
                return text
        # Subclasses of what JSON knows: decoding and comparing tells whether they survive.
        text = _encode(payload)
        faithful = (
            text.startswith("{")
            and bool(text.encode())
            and not _may_hold_a_long_number(text)
            and _decode(text) == payload
            and (text.count("{") + text.count("[") <= MAX_DEPTH or not _too_deep(payload))
        )
    except (TypeError, ValueError, RecursionError):
        faithful = False
    if not faithful:
        _check(payload)
        text = _encode(payload)
    return text


def decode_payload(text: str) -> dict[str, Any]:
    """Return the payload that `encode_payload` turned into ``text``.

    Raises:
        PayloadError: If ``text`` is not a JSON object.
    """
    try:
        value = _decode(text)
    except (ValueError, RecursionError) as error:
        raise PayloadError(f"the message is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise PayloadError(f"the message is a JSON {type(value).__name__}, not an object")
    return value


def freeze_payload(payload: MessageQueuePayload) -> bytes:
    """Return a copy of ``payload`` from which `thaw_payload` makes further ones.

    Only for this process: what it looks like depends on the version of Python. It costs less than
    JSON, and what it refuses and how it changes what is not quite JSON is the same.

    Raises:
        PayloadError: As `encode_payload`.
    """
    if type(payload) is dict and _exact(payload, MAX_DEPTH, _HARMLESS):
        frozen = marshal.dumps(payload, _FORMAT)
        if _SURROGATE not in frozen:
            return frozen
    return marshal.dumps(decode_payload(encode_payload(payload)), _FORMAT)


thaw_payload: Callable[[bytes], dict[str, Any]] = marshal.loads
"""Returns a new payload, equal to the one that `freeze_payload` was given."""


def check_headers(headers: Mapping[str, str] | None) -> dict[str, str]:
    """Return a copy of ``headers``.

    Raises:
        PayloadError: If a name is empty or a name or value is not a valid Unicode string.
    """
    if headers is None:
        return {}
    given: object = headers
    if not isinstance(given, Mapping):
        raise PayloadError(f"headers must be a mapping of str to str, not {_name(given)}")
    for name, value in given.items():
        if not isinstance(name, str) or not name:
            raise PayloadError(f"header name {ascii(name)[:60]} is not a non-empty str")
        if not isinstance(value, str):
            raise PayloadError(f"headers[{name!a}]: {_name(value)} is not a str")
        for text in (name, value):
            _check_text(text, f"headers[{name!a}]")
    return dict(headers)


def _may_hold_a_long_number(text: str) -> bool:
    """Whether ``text`` may hold a number that only a raised limit of this process allows."""
    return not 0 < sys.get_int_max_str_digits() <= MAX_DIGITS and bool(_long_number(text))


def _exact(value: object, depth: int, scalars: frozenset[type]) -> bool:
    """Whether ``value`` consists of just the types that decoding gives, at most ``depth`` deep.

    Numbers whose type is not among ``scalars`` must be finite and fit into 64 bits.
    """
    inside: Iterable[object]
    if not depth:
        return False
    if type(value) is dict:
        for key in value:
            if type(key) is not str:
                return False
        inside = value.values()
    elif type(value) is list:
        inside = value
    else:
        return False
    for inner in inside:
        kind = type(inner)
        if kind in scalars:
            continue
        if kind is int:
            if not -_LARGE < inner < _LARGE:
                return False
        elif kind is float:
            if not -math.inf < inner < math.inf:
                return False
        elif not _exact(inner, depth - 1, scalars):
            return False
    return True


def _too_deep(payload: MessageQueuePayload) -> bool:
    """Whether an acyclic payload nests deeper than `MAX_DEPTH`."""
    level: list[Any] = [payload]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True


def _check(payload: object) -> None:
    """Raise the `PayloadError` that names the first thing in ``payload`` that is not JSON."""
    if not isinstance(payload, dict):
        raise PayloadError(f"payload must be a dict (a JSON object), not {_name(payload)}")
    # Explicit stack: a payload nested a million deep must be refused, not overflow ours.
    stack: list[tuple[object, str, tuple[int, ...]]] = [(payload, "payload", ())]
    while stack:
        value, path, above = stack.pop()
        if isinstance(value, dict | list):
            if id(value) in above:
                raise PayloadError(f"{_short(path)}: contains itself")
            if len(above) >= MAX_DEPTH:
                raise PayloadError(f"{_short(path)}: nested deeper than {MAX_DEPTH} levels")
            below = (*above, id(value))
            if isinstance(value, dict):
                for key in value:
                    if not isinstance(key, str):
                        raise PayloadError(
                            f"{_short(path)}: key {ascii(key)[:60]} is {_name(key)}, not str"
                        )
                    _check_text(key, f"{_short(path)}: key")
                items = [(v, f'{path}["{k}"]', below) for k, v in value.items()]
            else:
                items = [(v, f"{path}[{i}]", below) for i, v in enumerate(value)]
            stack.extend(reversed(items))
        else:
            _check_scalar(value, path)


def _check_scalar(value: object, path: str) -> None:
    if value is None or isinstance(value, bool):
        return
    if isinstance(value, str):
        _check_text(value, _short(path))
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise PayloadError(f"{_short(path)}: {value} is not JSON; use null or a string")
    elif isinstance(value, int):
        try:
            str(int(value))
            readable = abs(value) < _TOO_LARGE
        except ValueError:
            readable = False
        if not readable:
            raise PayloadError(f"{_short(path)}: the number has too many digits")
    else:
        raise PayloadError(f"{_short(path)}: {_name(value)} is not JSON")


def _check_text(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PayloadError(f"{where}: lone surrogate at position {error.start}") from error


def _name(value: object) -> str:
    return type(value).__name__


def _short(path: str) -> str:
    printable = path.encode("unicode_escape").decode()
    return printable if len(printable) <= 120 else f"{printable[:60]}…{printable[-50:]}"
