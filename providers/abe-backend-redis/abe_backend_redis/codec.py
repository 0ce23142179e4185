"""How messages look in Redis."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from abe.backends.message_queue.base import KeyFilter, Message, decode_payload
from abe.types import ConsumerGroup

__all__ = ["Taken", "group_name", "lua_patterns", "messages", "read_headers", "stored_group"]

DEFAULT_GROUP = "$default"
"""No group can be called so: a leading ``$`` is reserved."""

_NO_HEADERS: Mapping[str, str] = MappingProxyType({})

Taken = tuple[Message, str]
"""A message and the id of its log entry, which is another than its own once it was replayed."""


def stored_group(group: ConsumerGroup) -> str:
    """Return the name of ``group`` in Redis."""
    return DEFAULT_GROUP if group is None else group


def group_name(stored: bytes) -> ConsumerGroup:
    """Return the group that Redis knows as ``stored``."""
    name = stored.decode()
    return None if name == DEFAULT_GROUP else name


def lua_patterns(keys: KeyFilter) -> list[str]:
    """Return the patterns of a key filter as Lua patterns."""
    return [f"^{_lua(pattern)}$" for pattern in keys.patterns]


def _lua(pattern: str) -> str:
    *start, last = pattern.split(".")
    parts = ["[^.]+" if segment == "*" else _literal(segment) for segment in start]
    parts.append({"*": "[^.]+", "**": ".+"}.get(last) or _literal(last))
    return "%.".join(parts)


def _literal(text: str) -> str:
    # Beyond ASCII nothing is special to Lua, and '%' must not stand before half a character.
    return "".join(f"%{c}" if c.isascii() and not c.isalnum() else c for c in text)


def read_headers(text: bytes) -> Mapping[str, str]:
    """Return headers as they were given."""
    if not text:
        return _NO_HEADERS
    headers: dict[str, str] = json.loads(text)
    return headers


def messages(flat: Sequence[bytes]) -> Iterator[Taken]:
    """Yield the messages that a script returned: id, key, attempt, payload, headers, first id."""
    fields = iter(flat)
    for id_, key, attempt, payload, headers, first in zip(*[fields] * 6, strict=True):
        entry = id_.decode()
        own = first.decode() if first else entry
        message = Message(
            decode_payload(payload.decode()),
            own,
            key.decode(),
            int(own.partition("-")[0]) / 1000,
            int(attempt),
            read_headers(headers),
        )
        yield message, entry
