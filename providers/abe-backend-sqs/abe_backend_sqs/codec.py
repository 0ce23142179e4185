"""How messages look in SQS: the payload is the body, everything else message attributes."""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from abe.backends.message_queue.base import Message, Outgoing, decode_payload

__all__ = ["Prepared", "attributes_of", "message_of", "new_id", "order_group", "prepare", "size_of"]

ID, KEY, HEADERS = "abe-id", "abe-key", "abe-headers"
PLAIN = 7
"""Headers that may be attributes of their own: SQS allows ten, and ours are three."""

_ID = re.compile(r"(\d{13})-[0-9a-f]{16}")
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
"""What neither a body nor an attribute may contain."""
_NAME = re.compile(r"(?!abe-|aws\.|amazon\.)[\w-]+(\.[\w-]+)*", re.ASCII | re.IGNORECASE)
_GROUP = re.compile(r"[!-~]{1,128}")


class Prepared(NamedTuple):
    """A message as it is sent."""

    id: str
    """Its own; also what SQS recognises a repeated sending by, where it does."""
    body: str
    attributes: dict[str, Any]
    size: int
    """What SQS counts, in bytes."""
    delay: int
    """Whole seconds; 0 = what the queue says."""
    group: str
    """The order it belongs to, on FIFO queues."""


def new_id() -> str:
    """Return an id that tells the time it was made at."""
    return f"{time.time_ns() // 1_000_000}-{secrets.token_hex(8)}"


def prepare(item: Outgoing) -> Prepared:
    """Return ``item`` as it is sent, with a new id."""
    id = new_id()
    # Only strings can hold what SQS forbids, and JSON has another way to write it.
    body = _FORBIDDEN.sub(lambda found: f"\\u{ord(found.group()):04x}", item.body)
    attributes = attributes_of(id, item.key, item.headers)
    return Prepared(
        id,
        body,
        attributes,
        size_of(body, attributes),
        int(item.delay + 0.999),  # a delay is a lower bound
        order_group(item.key),
    )


def order_group(key: str) -> str:
    """Return the message group in which the messages of ``key`` keep their order."""
    return key if _GROUP.fullmatch(key) else sha256(key.encode()).hexdigest()


def attributes_of(id: str, key: str, headers: Mapping[str, str]) -> dict[str, Any]:
    """Return the message attributes; headers that cannot be one of their own share one, as JSON."""
    quoted = _FORBIDDEN.sub(lambda found: quote(found.group()), key.replace("%", "%25"))
    values = {ID: id, KEY: quoted}
    packed = {}
    for name, value in headers.items():
        plain = len(name) <= 256 and _NAME.fullmatch(name) and value
        if plain and not _FORBIDDEN.search(value) and len(values) < PLAIN + 2:
            values[name] = value
        else:
            packed[name] = value
    if packed:
        values[HEADERS] = json.dumps(packed)
    return {name: {"DataType": "String", "StringValue": v} for name, v in values.items()}


def size_of(body: str, attributes: Mapping[str, Any]) -> int:
    """Return the size of a message as SQS counts it, in bytes."""
    return len(body.encode()) + sum(
        len(name.encode()) + len(part["DataType"]) + len(part["StringValue"].encode())
        for name, part in attributes.items()
    )


def message_of(
    raw: Mapping[str, Any], queue: str, payload: Mapping[str, Any] | None = None
) -> Message:
    """Return what SQS handed out as a message, with ``payload`` in the place of its own.

    What others than abe have sent has the queue's name as key, and SQS's id.

    Raises:
        PayloadError: If the body is not a JSON object.
    """
    values = {
        name: str(part["StringValue"])
        for name, part in raw.get("MessageAttributes", {}).items()
        if "StringValue" in part
    }
    system = raw.get("Attributes", {})
    id = values.pop(ID, None) or str(raw["MessageId"])
    key = values.pop(KEY, None)
    _unpack(values)
    made = _ID.fullmatch(id)
    when = made.group(1) if made else system.get("SentTimestamp", 0)
    return Message(
        decode_payload(raw["Body"]) if payload is None else payload,
        id,
        unquote(key) if key else queue.removesuffix(".fifo"),
        int(when) / 1000,
        int(system.get("ApproximateReceiveCount", 1)),
        values,
    )


def _unpack(values: dict[str, str]) -> None:
    """Take apart the headers that share an attribute; leave it as it is if it is not ours."""
    try:
        packed = json.loads(values[HEADERS])
    except (KeyError, ValueError):
        return
    if isinstance(packed, dict) and all(isinstance(v, str) for v in packed.values()):
        del values[HEADERS]
        values |= packed
