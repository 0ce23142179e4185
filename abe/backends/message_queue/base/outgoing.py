"""Messages on their way to the broker: each checked and encoded exactly once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from abe.backends.message_queue.base.capabilities import Capabilities, unsupported
from abe.backends.message_queue.base.keys import validate_key
from abe.backends.message_queue.base.payload import check_headers
from abe.errors import ConfigurationError, InvalidKeyError, PayloadError
from abe.types import MessageQueueKey

__all__ = ["NO_HEADERS", "Label", "Outgoing", "check_extras", "item_label", "no_label", "prepare"]

NO_HEADERS: Mapping[str, str] = MappingProxyType({})

Label = Callable[[int], str]
"""Returns how errors name the item at a position."""

item_label: Label = "item {}".format
no_label: Label = "".format


class Outgoing(NamedTuple):
    """A checked message on its way to the broker.

    Attributes:
        key: The routing key.
        body: The payload as JSON text; a backend that nothing leaves may encode it otherwise.
        headers: Text metadata.
        delay: Seconds before it may be delivered.
    """

    key: str
    body: str
    headers: Mapping[str, str]
    delay: float


def check_extras(
    name: str, can: Capabilities, headers: Mapping[str, str] | None, delay: float
) -> Mapping[str, str]:
    """Return a copy of ``headers``; refuse what is malformed, or not declared."""
    if headers and not can.headers:
        raise unsupported(name, "publish(headers=…)", "headers")
    if delay:
        if not 0 <= delay < math.inf:
            raise ConfigurationError(f"delay is {delay!r}; it must be 0 or more seconds")
        if delay > can.delay:
            longest = f"publish(delay={delay:g}); the longest is {can.delay:g} s"
            raise unsupported(name, longest if can.delay else "publish(delay=…)", "delay")
    return check_headers(headers) if headers else NO_HEADERS


def prepare(
    items: Iterable[Any],
    key: MessageQueueKey | None,
    headers: Mapping[str, str],
    delay: float,
    *,
    encode: Callable[[Any], Any],
    label: Label,
) -> list[Outgoing]:
    """Check and encode ``items``: ``(key, payload)`` pairs, or payloads if ``key`` is given.

    Errors name the item.
    """
    prepared: list[Outgoing] = []
    if key is not None:
        key = validate_key(key)
    try:
        if key is not None:
            for item in items:
                # Not a comprehension: its length names the item at fault.
                prepared.append(Outgoing(key, encode(item), headers, delay))  # noqa: PERF401
        else:
            for item in items:
                its_key, payload = _split(item)
                prepared.append(Outgoing(validate_key(its_key), encode(payload), headers, delay))
    except (InvalidKeyError, PayloadError) as error:
        name = label(len(prepared))
        raise type(error)(f"{name}: {error}" if name else str(error)) from None
    return prepared


def _split(item: Any) -> tuple[Any, Any]:
    if isinstance(item, tuple | list) and len(item) == 2:  # a dict or a string of two is no pair
        return item[0], item[1]
    raise PayloadError(
        "not a (key, payload) pair; pass key=… to publish plain payloads under one key"
    )
