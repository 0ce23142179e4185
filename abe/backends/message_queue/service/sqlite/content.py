"""The text in which a message stands in the file, and what is claimed at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from abe.backends.message_queue.base import Message, decode_payload, raw_payload
from abe.errors import PayloadError

__all__ = ["COLUMNS", "Batch", "Claim", "Row", "message_of", "shown"]

COLUMNS = "key, CAST(content AS BLOB)"
"""Bytes, because text that is not UTF-8 would fail the whole statement."""
Row = tuple[str, bytes]


class Claim(NamedTuple):
    """The lease of a message.

    Attributes:
        seq: Its position in publish order.
        token: Proof of ownership, new for every claim.
        attempt: Which delivery this is.
    """

    seq: int
    token: int
    attempt: int


class Batch(NamedTuple):
    """What was claimed at once, in publish order.

    Attributes:
        claims: The leases.
        keys: The keys, separated by spaces.
        content: The contents, separated by commas.
        begun: How often the handling of those at these positions in publish order had begun.
    """

    claims: Sequence[Claim] = ()
    keys: str = ""
    content: bytes = b""
    begun: Mapping[int, int] = MappingProxyType({})

    def messages(self) -> list[Message]:
        """Decode all at once.

        Raises:
            PayloadError: If that is not possible for each of them.
        """
        if not self.claims:
            return []
        keys = self.keys.split(" ")
        contents = _contents(self.content, len(self.claims))
        if len(keys) != len(contents):
            raise PayloadError("a key contains a space")
        return [
            _message(content, key, claim.attempt)
            for content, key, claim in zip(contents, keys, self.claims, strict=True)
        ]


def _contents(joined: bytes, number: int) -> list[Any]:
    try:
        text = joined.decode()
    except ValueError as error:
        raise PayloadError(f"the message is not JSON: {error}") from error
    contents: list[Any] = decode_payload('{"":[' + text + "]}")[""]
    if len(contents) != number:
        raise PayloadError("the message is not JSON: there is more than one value")
    return contents


def _message(content: Any, key: str, attempt: int) -> Message:
    try:
        id_, published, headers, payload = content
    except (TypeError, ValueError):
        raise PayloadError("the message is not an array of four") from None
    if type(payload) is not dict:
        kind = type(payload).__name__
        raise PayloadError(f"the message is a JSON {kind}, not an object")
    return Message(payload, id_, key, published, attempt, headers or {})


def message_of(row: Row, attempt: int = 1) -> Message:
    """Return a stored message as consumers see it.

    Raises:
        PayloadError: If this process cannot decode it.
    """
    key, content = row
    (value,) = _contents(content, 1)
    return _message(value, key, attempt)


def shown(row: Row, attempt: int) -> Message:
    """Return a stored message for somebody who looks, in any case."""
    try:
        return message_of(row, attempt)
    except PayloadError:
        key, content = row
        id_, *_ = content.decode(errors="replace").removeprefix('["').partition('"')
        return Message(raw_payload(content), id_, key, None, attempt)
