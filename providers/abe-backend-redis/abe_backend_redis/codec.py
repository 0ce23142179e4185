"""How messages look in Redis."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from abe.backends.message_queue.base import (
    Delivery,
    KeyFilter,
    Message,
    decode_payload,
    raw_payload,
)
from abe.errors import PayloadError
from abe.types import ConsumerGroup

DEFAULT_GROUP = "$default"
"""No group can be called so: a leading ``$`` is reserved."""

_NO_HEADERS: Mapping[str, str] = MappingProxyType({})


Receipt = tuple[str, str, int, int, int]
"""What is needed to settle; holds also after a reconnection, for as long as the lease does.

The consumer that the message was handed to; its log entry, whose id is another than the message's
once that was replayed; the attempt; the epoch of the group then: as long as that is the same, the
message is still that consumer's; and 1 once a settlement was sent and its answer got lost. A plain
tuple, because there is one for every message.
"""


def stored_group(group: ConsumerGroup) -> str:
    return DEFAULT_GROUP if group is None else group


def group_name(stored: bytes) -> ConsumerGroup:
    name = stored.decode()
    return None if name == DEFAULT_GROUP else name


def lua_patterns(keys: KeyFilter) -> str:
    """Return a key filter as Lua patterns, in order; empty if every key matches."""
    return " ".join(sorted(f"^{_lua(pattern)}$" for pattern in keys.patterns))


def _lua(pattern: str) -> str:
    *start, last = pattern.split(".")
    parts = ["[^.]+" if segment == "*" else _literal(segment) for segment in start]
    parts.append({"*": "[^.]+", "**": ".+"}.get(last) or _literal(last))
    return "%.".join(parts)


def _literal(text: str) -> str:
    # Beyond ASCII nothing is special to Lua, and '%' must not stand before half a character.
    return "".join(f"%{c}" if c.isascii() and not c.isalnum() else c for c in text)


def _headers(text: bytes) -> Mapping[str, str]:
    headers: Mapping[str, str] = json.loads(text) if text else _NO_HEADERS
    if not isinstance(headers, Mapping):
        raise ValueError(f"they are a JSON {type(headers).__name__}, not an object")
    return headers


def deliveries(
    consumer: str, flat: Sequence[bytes], extras: Sequence[Any] = (), epoch: int = 0
) -> tuple[list[Delivery], dict[int, str]]:
    """Return the messages that a script handed to a consumer, and why some cannot be decoded.

    ``flat`` has id and text of each: key and payload in one; ``extras`` position, attempt, begun
    handlings, headers, first id, and time of publishing of those that are not plain.
    """
    broken: dict[int, str] = {}
    found: list[Delivery] = []
    if not flat:
        return found, broken
    entries = b" ".join(flat[::2]).decode().split(" ")
    heads, _, texts = zip(*[text.partition(b" ") for text in flat[1::2]], strict=True)
    millisecond, when = "", 0.0
    for entry, key, body in zip(entries, map(_key, heads), _payloads(texts, broken), strict=True):
        if entry[:13] != millisecond:  # so many digits until 2286
            millisecond, when = entry[:13], published(entry)
        message = Message(body, entry, key, when)
        found.append(Delivery(message, (consumer, entry, 1, epoch, 0)))
    for n, attempt, begun, text, first, since in zip(*[iter(extras)] * 6, strict=True):
        try:
            headers = _headers(text)
        except ValueError as error:
            headers, broken[n] = _NO_HEADERS, f"the headers cannot be decoded: {error}"
        own = first.decode() or entries[n]
        stamp = int(since) / 1000 if since else published(own)
        message = found[n].message
        message = Message({**message}, own, message.key, stamp, attempt, headers)
        found[n] = Delivery(message, (consumer, entries[n], attempt, epoch, 0), begun=begun)
    return found, broken


@lru_cache(maxsize=4096)
def _key(head: bytes) -> str:
    return head.decode(errors="backslashreplace")


def _payloads(texts: Sequence[bytes], broken: dict[int, str]) -> Iterable[dict[str, Any]]:
    """Decode payloads together, which costs a third less than one by one."""
    try:
        found: list[Any] = decode_payload(f'{{"":[{b",".join(texts).decode()}]}}')[""]
    except (PayloadError, UnicodeDecodeError):
        found = []
    if len(found) == len(texts) and all(type(payload) is dict for payload in found):
        return found
    return [_payload(n, text, broken) for n, text in enumerate(texts)]


def _payload(position: int, text: bytes, broken: dict[int, str]) -> dict[str, Any]:
    try:
        return decode_payload(text.decode())
    except (PayloadError, UnicodeDecodeError) as error:
        broken[position] = f"cannot be decoded: {error}"
        return raw_payload(text)


def read_letter(row: Mapping[bytes, bytes]) -> Message:
    """Return a dead letter; of one that cannot be decoded, what it consists of."""
    id_ = row[b"i"].decode()
    try:
        headers = {**_headers(row[b"h"]), **_headers(row[b"d"])}
    except ValueError:
        headers = dict(_headers(row[b"d"]))
    return Message(
        _payload(0, row[b"p"], {}),
        id_,
        _key(row[b"k"]),
        int(since) / 1000 if (since := row.get(b"t")) else published(id_),
        int(row[b"n"]),
        headers,
    )


def published(id: str) -> float:
    """Return when a message with this id was published, in seconds since the epoch."""
    return int(id.partition("-")[0]) / 1000
