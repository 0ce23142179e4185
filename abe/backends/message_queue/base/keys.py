"""Keys, group names and key filters: one set of rules for every backend."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from abe.errors import InvalidKeyError
from abe.types import ConsumerGroup

__all__ = ["KeyFilter", "validate_group", "validate_key"]

MAX_KEY_BYTES = 200
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f-\x9f\s*?\[\]#>]")


def validate_key(key: str) -> str:
    """Return ``key``, or say why it is not a routing key.

    Raises:
        InvalidKeyError: If it is not 1 to 200 bytes of UTF-8 in non-empty, dot-separated segments
            without control characters, white space or any of ``* ? [ ] # >``, or starts with ``$``.
    """
    return _validate_text(key, "key") if type(key) is str else _validate(key, "key")


def validate_group(group: ConsumerGroup) -> ConsumerGroup:
    """Return ``group``, or say why it is not a group name; the rules are those of keys.

    Raises:
        InvalidKeyError: If it is neither ``None`` nor well-formed.
    """
    return None if group is None else _validate(group, "group")


def _validate(text: str, what: str) -> str:
    if not isinstance(text, str):
        raise InvalidKeyError(f"{what} must be a str, not {type(text).__name__}")
    # An enum member equals its text but formats as its name, and must not enter the cache.
    return _validate_text(str.__str__(text), what)


@lru_cache(maxsize=8192)
def _validate_text(text: str, what: str) -> str:
    shown = ascii(text if len(text) <= 60 else text[:57] + "...")
    problem = _problem(text)
    if problem:
        raise InvalidKeyError(f"{what} {shown} {problem}")
    return text


def _problem(text: str) -> str:
    if not text:
        return "is empty"
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        return "holds a lone surrogate, which is not valid UTF-8"
    if size > MAX_KEY_BYTES:
        return f"has {size} bytes of UTF-8; the limit is {MAX_KEY_BYTES}"
    if found := _FORBIDDEN.search(text):
        return f"contains {found.group()!a}, which keys and groups may not"
    if text.startswith("$"):
        return "starts with '$', which is reserved"
    if not all(text.split(".")):
        return "has an empty segment; write segments separated by single dots, e.g. orders.eu"
    return ""


class KeyFilter:
    """A compiled set of key patterns; ``*`` is one segment, a final ``**`` one or more.

    ``*`` is that of AMQP's topic exchanges, a final ``**`` what NATS writes as ``>``.

    Args:
        keys: One pattern, several, or ``None`` to match every key.

    Raises:
        InvalidKeyError: If a pattern is malformed, or the sequence is empty.
    """

    __slots__ = ("_cache", "_regex", "patterns")

    def __init__(self, keys: Sequence[str] | str | None = None) -> None:
        if isinstance(keys, str):
            keys = [keys]
        if keys is not None and not keys:
            raise InvalidKeyError("keys is empty and would match nothing; use None for every key")
        # By pattern, so that order and repetition do not matter.
        regexes = dict(_compile(pattern) for pattern in keys or ())
        self.patterns: tuple[str, ...] = tuple(sorted(regexes))
        self._regex = re.compile("|".join(regexes.values()))
        self._cache: dict[str, bool] = {}

    def __bool__(self) -> bool:
        """Whether the filter restricts anything."""
        return bool(self.patterns)

    def matches(self, key: str) -> bool:
        """Whether a message published under ``key`` passes."""
        if not self.patterns:
            return True
        known = self._cache.get(key)
        if known is None:
            if len(self._cache) > 10_000:
                self._cache.clear()
            known = self._cache[key] = self._regex.fullmatch(key) is not None
        return known


def _compile(pattern: str) -> tuple[str, str]:
    if not isinstance(pattern, str):
        raise InvalidKeyError(f"key filter must be a str, not {type(pattern).__name__}")
    pattern = str.__str__(pattern)
    *start, last = pattern.split(".")
    tail = "x" if last in ("*", "**") else last
    literal = ["x" if segment == "*" else segment for segment in start]
    problem = _problem(".".join([*literal, tail]))
    if problem.startswith("contains '*'"):
        problem = "'*' stands for one whole segment, '**' for one or more and only at the end"
    elif problem:
        problem = f"it {problem}"
    if problem:
        raise InvalidKeyError(f"key filter {pattern!a} is malformed: {problem}")
    parts = ["[^.]+" if segment == "*" else re.escape(segment) for segment in start]
    parts.append({"*": "[^.]+", "**": ".+"}.get(last) or re.escape(last))
    return pattern, r"\.".join(parts)
