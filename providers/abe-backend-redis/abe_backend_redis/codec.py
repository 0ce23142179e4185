"""How messages look in Redis."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from abe.backends.message_queue.base import Delivery, KeyFilter, Message, decode_payload
from abe.errors import PayloadError
from abe.types import ConsumerGroup

__all__ = [
    "Receipt",
    "deliveries",
    "group_name",
    "lua_patterns",
    "published",
    "read_headers",
    "stored_group",
]

DEFAULT_GROUP = "$default"
"""No group can be called so: a leading ``$`` is reserved."""

_NO_HEADERS: Mapping[str, str] = MappingProxyType({})


Receipt = tuple[str, str, int, int]
"""What is needed to settle; holds also after a reconnection, for as long as the lease does.

The consumer that the message was handed to; its log entry, whose id is another than the message's
once that was replayed; the attempt; and the epoch of the group then: as long as that is the same,
the message is still that consumer's. A plain tuple, because there is one for every message.
"""


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


def deliveries(
    consumer: str, flat: Sequence[bytes], extras: Sequence[Any] = (), epoch: int = 0
) -> list[Delivery]:
    """Return the messages that a script returned.

    Args:
        consumer: Who they were handed to.
        flat: Id, key and payload of each.
        extras: Position, attempt, headers and first id of those that are not plain.
        epoch: The group's.

    Raises:
        PayloadError: If one holds what abe does not write; the text names its id.
    """
    found: list[Delivery] = []
    keys = {key: key.decode() for key in set(flat[1::3])}
    odd = {position: rest for position, *rest in zip(*[iter(extras)] * 4, strict=True)}
    millisecond, when = "", 0.0
    ids = flat[::3]
    for id_, key, body in zip(ids, flat[1::3], _payloads(ids, flat[2::3]), strict=True):
        entry = id_.decode()
        if entry[:13] != millisecond:  # so many digits until 2286
            millisecond, when = entry[:13], published(entry)
        if odd and len(found) in odd:
            attempt, headers, first = odd[len(found)]
            own = first.decode() or entry
            message = Message(body, own, keys[key], published(own), attempt, read_headers(headers))
            found.append(Delivery(message, (consumer, entry, attempt, epoch)))
        else:
            message = Message(body, entry, keys[key], when)
            found.append(Delivery(message, (consumer, entry, 1, epoch)))
    return found


def _payloads(ids: Sequence[bytes], texts: Sequence[bytes]) -> list[dict[str, Any]]:
    """Decode payloads together, which costs a third less than one by one."""
    try:
        found: list[Any] = decode_payload(f'{{"":[{b",".join(texts).decode()}]}}')[""]
    except (PayloadError, UnicodeDecodeError):
        found = []
    if len(found) == len(texts) and all(type(payload) is dict for payload in found):
        return found
    return [_payload(id_, text) for id_, text in zip(ids, texts, strict=True)]


def _payload(id_: bytes, text: bytes) -> dict[str, Any]:
    try:
        return decode_payload(text.decode())
    except (PayloadError, UnicodeDecodeError) as error:
        raise PayloadError(f"message {id_.decode()} was not written by abe: {error}") from error


def published(id: str) -> float:
    """Return when a message with this id was published, in seconds since the epoch."""
    return int(id.partition("-")[0]) / 1000
