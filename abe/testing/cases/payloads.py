"""Payloads, headers and keys: exactly what was published, or an error and nothing sent."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from abe.errors import InvalidKeyError, PayloadError
from abe.testing.base import ContractBase
from abe.testing.case import case
from abe.testing.context import CaseContext
from abe.testing.expect import check, refused, same, shown

__all__ = ["PayloadCases"]

STRINGS = (
    "",
    " leading and trailing ",
    "\x00\x01\x1b\x7f\x80",
    "tab\t cr\r lf\n crlf\r\n",
    "\u2028\u2029\ufeff\ufffe\uffff",
    "é and e\u0301 are two strings",
    "😀 👩‍👩‍👧 \U0010ffff",
    "مرحبا 你好",
    "\"quotes\" 'single' \\ back / slash",
    "</script><b>&amp;",
    "{{not}} {a} %s $HOME ' OR 1=1 --",
    "null",
    "1",
)
NUMBERS = (0, -0.0, 1, 1.0, -1, 2**53 + 1, -(2**63), 2**64, 10**30, 0.1, 1e-7, 5e-324, 1.7e308)
PAYLOADS: tuple[dict[str, Any], ...] = (
    {},
    {"strings": list(STRINGS)},
    {"numbers": list(NUMBERS)},
    {"scalars": [None, True, False, 0, 1, "", "true"]},
    {"empty": {"list": [], "object": {}}, "nested": [[[[{"a": [{}]}]]]]},
    {"": 0, " ": 1, "a.b": 2, "ключ": 3, "\u0000": 4, "$type": 5, "id": 6, "key": 7, "attempt": 8},
    {"order": 1, "a": 2, "B": 3, "0": 4},
)


def _cycle() -> dict[str, Any]:
    payload: dict[str, Any] = {"a": []}
    payload["a"].append(payload)
    return payload


def _deep() -> dict[str, Any]:
    payload: dict[str, Any] = {}
    for _ in range(100_000):
        payload = {"a": payload}
    return payload


POISON: dict[str, tuple[Callable[[], Any], str]] = {
    "NaN": (lambda: {"a": [1, math.nan]}, 'payload["a"][1]'),
    "Infinity": (lambda: {"a": {"b": math.inf}}, 'payload["a"]["b"]'),
    "-Infinity": (lambda: {"a": -math.inf}, 'payload["a"]'),
    "a key that is a number": (lambda: {"a": {1: "x"}}, 'payload["a"]'),
    "a key that is None": (lambda: {None: "x"}, "payload"),
    "bytes": (lambda: {"a": b"x"}, 'payload["a"]'),
    "a set": (lambda: {"a": [0, {1}]}, 'payload["a"][1]'),
    "a tuple": (lambda: {"a": (1, 2)}, 'payload["a"]'),
    "an object": (lambda: {"a": object()}, 'payload["a"]'),
    "a cycle": (_cycle, 'payload["a"][0]'),
    "excessive depth": (_deep, "payload"),
    "a lone surrogate": (lambda: {"a": "x\ud800"}, 'payload["a"]'),
    "a key with a lone surrogate": (lambda: {"a": {"\udfff": 1}}, 'payload["a"]'),
    "a list": (lambda: [1], "list"),
    "a str": (lambda: "text", "str"),
    "None": (lambda: None, "None"),
}

GOOD_KEYS = (
    "a",
    "A",
    "0",
    "orders.eu.created",
    "with-dash_and:colon/slash%25+plus=eq&amp;",
    "~!@^()`|;,<'\"\\{}",
    "größe.ключ.鍵.😀",
    "x" * 200,
    "é" * 100,
)
BAD_KEYS = (
    "",
    ".",
    "a.",
    ".a",
    "a..b",
    "a b",
    "a\tb",
    "a\nb",
    "a\x00b",
    "a\u00a0b",
    "a*",
    "a?",
    "a[b",
    "a]b",
    "a#b",
    "a>b",
    "$a",
    "x" * 201,
    "é" * 101,
    "a\ud800",
)

HEADERS: tuple[dict[str, str], ...] = (
    {"trace-id": "abc", "Empty": "", "lower": "1", "LOWER": "2"},
    {f"h{n}": text for n, text in enumerate(STRINGS)},
    {"ключ": "значение", "with space": "x", "a:b": "c=d;e", "x" * 60: "y" * 500},
)
BAD_HEADERS: dict[str, Any] = {
    "a value that is a number": {"a": 1},
    "a value that is None": {"a": None},
    "a value that is bytes": {"a": b"x"},
    "a name that is a number": {1: "a"},
    "an empty name": {"": "a"},
    "a lone surrogate": {"a": "\ud800"},
    "a list of pairs": [("a", "b")],
}


class PayloadCases(ContractBase):
    """What a message may consist of."""

    @case(limit=6.0)
    async def test_payloads_arrive_exactly(self, context: CaseContext) -> None:
        """Any JSON object arrives exactly: odd strings, large and small numbers, types, order."""
        async with context.stream() as stream:
            for number, payload in enumerate(PAYLOADS):
                await context.publish(payload)
                message = await context.next(stream, f"odd payload {number}")
                same(message, payload, "payload")

    @case()
    async def test_large_payload_arrives(self, context: CaseContext) -> None:
        """A payload of many bytes arrives whole."""
        payload = {
            "text": "é" * (self.large_bytes // 4),
            "items": list(range(self.large_bytes // 20)),
        }
        await context.publish(payload)
        async with context.stream() as stream:
            same(await context.next(stream, f"{self.large_bytes} bytes"), payload, "payload")

    @case("declared")
    async def test_poison_payloads_are_refused(self, context: CaseContext) -> None:
        """What is not JSON raises PayloadError naming the path, and nothing of it is sent."""
        for name, (make, path) in POISON.items():
            with refused(f"publish() of {name}", PayloadError, naming=path):
                await context.backend.publish("orders", make())
        sent = await context.send(1)
        await context.collect(sent, what="the only payload that was not refused")

    @case("declared")
    async def test_keys_arrive_exactly(self, context: CaseContext) -> None:
        """Every well-formed key is accepted and arrives unchanged as message.key."""
        async with context.stream() as stream:
            for key in GOOD_KEYS:
                await context.publish({"key": key}, key)
                message = await context.next(stream, f"the message of key {key!r}")
                same(message, {"key": key}, "payload")
                check(message.key == key, f"key {key!r} arrived as {message.key!r}")

    @case("declared")
    async def test_malformed_keys_are_refused(self, context: CaseContext) -> None:
        """A malformed key raises InvalidKeyError and nothing is sent."""
        for key in BAD_KEYS:
            with refused(f"publish() to key {shown(key, 60)}", InvalidKeyError):
                await context.backend.publish(key, {"key": "malformed"})
        with refused("publish() to key None", InvalidKeyError):
            await context.backend.publish(None, {"key": "malformed"})
        sent = await context.send(1)
        await context.collect(sent, what="the only message whose key was well-formed")

    @case("groups")
    async def test_malformed_groups_are_refused(self, context: CaseContext) -> None:
        """A malformed group name raises InvalidKeyError."""
        for group in BAD_KEYS:
            with refused(f"consume(group={shown(group, 60)})", InvalidKeyError):
                context.open(group)

    @case("headers")
    async def test_headers_arrive_exactly(self, context: CaseContext) -> None:
        """Headers arrive exactly as published, apart from the payload, and none if none were."""
        async with context.stream() as stream:
            for headers in ({}, *HEADERS):
                given = dict(headers)
                await context.publish({"n": 0}, headers=given)
                given["later"] = "changed"
                message = await context.next(stream, "the message with headers")
                same(dict(message.headers), headers, "headers")
                same(message, {"n": 0}, "payload of a message with headers")

    @case("headers")
    async def test_malformed_headers_are_refused(self, context: CaseContext) -> None:
        """Headers that are not text raise PayloadError and nothing is sent."""
        for name, headers in BAD_HEADERS.items():
            with refused(f"publish() with headers with {name}", PayloadError):
                await context.backend.publish("orders", {"n": 1}, headers=headers)
        sent = await context.send(1)
        await context.collect(sent, what="the only message whose headers were not refused")

    @case("headers", "redelivery")
    async def test_headers_survive_redelivery(self, context: CaseContext) -> None:
        """A redelivered message has the headers it was published with."""
        await context.publish({"n": 0}, headers={"trace": "abc"})
        async with context.stream() as stream:
            await (await context.next(stream)).nack()
            again = await context.next(stream, "the redelivery")
            same(dict(again.headers), {"trace": "abc"}, "headers of the redelivery")
