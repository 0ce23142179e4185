"""How messages look in Redis."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from abe.backends.message_queue.base import KeyFilter
from abe_backend_redis.codec import deliveries, lua_patterns, stored_group


def test_key_filters_become_lua_patterns() -> None:
    patterns = lua_patterns(KeyFilter(["a.*.b-c", "größe_%.**", "x+y"]))
    assert patterns == r"^a%.[^.]+%.b%-c$ ^größe%_%%%..+$ ^x%+y$"
    assert lua_patterns(KeyFilter()) == ""


def test_the_default_group_has_a_name_that_no_group_can_have() -> None:
    assert stored_group(None).startswith("$")
    assert stored_group("$default"[1:]) == "default"


def test_what_a_script_returns_becomes_deliveries() -> None:
    rows = [(b"1700000000000-1", b'a {"n":1}'), (b"1700000000000-2", "ö {}".encode())]
    rows.append((b"1700000000001-0", 'a {"n":["ü",{}]}'.encode()))
    flat = [field for row in rows for field in row]
    extras = [1, 3, 2, b'{"h":"v"}', b"1600000000000-7", b""]
    found, broken = deliveries("c", flat, extras, 5)
    assert not broken
    assert [delivery.begun for delivery in found] == [0, 2, 0]
    assert [delivery.message for delivery in found] == [{"n": 1}, {}, {"n": ["ü", {}]}]
    assert [delivery.message.id for delivery in found] == [
        "1700000000000-1",
        "1600000000000-7",
        "1700000000001-0",
    ]
    assert [delivery.message.key for delivery in found] == ["a", "ö", "a"]
    assert [delivery.message.attempt for delivery in found] == [1, 3, 1]
    assert [dict(delivery.message.headers) for delivery in found] == [{}, {"h": "v"}, {}]
    times = [datetime.fromtimestamp(n, UTC) for n in (1.7e9, 1.6e9, 1_700_000_000.001)]
    assert [delivery.message.timestamp for delivery in found] == times
    assert [delivery.receipt for delivery in found] == [
        ("c", "1700000000000-1", 1, 5, 0),
        ("c", "1700000000000-2", 3, 5, 0),
        ("c", "1700000000001-0", 1, 5, 0),
    ]


@pytest.mark.parametrize(
    ("first", "second", "broken", "shown"),
    [
        (b"{}", b"[1]", 1, "[1]"),
        (b"{}", b'{"a":NaN}', 1, '{"a":NaN}'),
        (b"{}", b"\xff\x00", 1, "\\xff\x00"),
        (b'{"a":1', b'"b":2}', 0, '{"a":1'),  # one object together
    ],
)
def test_what_abe_did_not_write_is_told_from_the_rest(
    first: bytes, second: bytes, broken: int, shown: str
) -> None:
    found, reasons = deliveries("c", [b"7-1", b"k " + first, b"7-2", b"k " + second])
    assert broken in reasons
    assert found[broken].message == {"abe-raw": shown}
    assert [delivery.message.id for delivery in found] == ["7-1", "7-2"]


def test_headers_that_abe_did_not_write() -> None:
    found, reasons = deliveries("c", [b"7-1", b"k {}"], [0, 1, 0, b"[]", b"", b""])
    assert "headers" in reasons[0]
    assert found[0].message == {}


def test_an_id_that_a_caller_gave_tells_no_time() -> None:
    row = [b"1700000000000-1", b"k {}"]
    found, _ = deliveries("c", row, [0, 1, 0, b"", b"order-7", b"1600000000000"])
    assert found[0].message.id == "order-7"
    assert found[0].message.timestamp == datetime.fromtimestamp(1.6e9, UTC)
