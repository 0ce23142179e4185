"""What was published is exactly what is received, or `PayloadError` names the path."""

from __future__ import annotations

import copy
import enum
import json
import math
import re
import sys
from collections import OrderedDict
from datetime import date
from decimal import Decimal
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abe.backends.message_queue.base import check_headers, decode_payload, encode_payload
from abe.backends.message_queue.base import payload as module
from abe.backends.message_queue.base.payload import MAX_DEPTH, freeze_payload, thaw_payload
from abe.errors import PayloadError

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXT, inner, max_size=5),
    max_leaves=25,
)
PAYLOADS = st.dictionaries(TEXT, JSON, max_size=6)
NOT_JSON: st.SearchStrategy[Any] = st.sampled_from(
    [
        math.nan,
        math.inf,
        -math.inf,
        b"x",
        bytearray(b"x"),
        {1},
        frozenset(),
        (1, 2),
        (),
        object(),
        Decimal(1),
        date(2024, 1, 1),
        1j,
        "\ud800",
        {1: 2},
        {None: 2},
        {"\udfff": 1},
        10**5000,
    ]
)


def identical(one: Any, other: Any) -> bool:
    """Whether two values are equal in type too: 1, 1.0 and True are three different values."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(identical(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(identical, one, other))
    if isinstance(one, float):
        return one == other and math.copysign(1, one) == math.copysign(1, other)
    return bool(one == other)


def nested(depth: int, kind: type) -> dict[str, Any]:
    """Return a payload of ``depth`` levels, the outermost included."""
    value: Any = 1
    for _ in range(depth - 1):
        value = {"k": value} if kind is dict else [value]
    return {"a": value}


def arrived(payload: dict[str, Any]) -> dict[str, Any]:
    """Return what a receiver gets, as JSON or as a copy in this process."""
    received = decode_payload(encode_payload(payload))
    assert identical(thaw_payload(freeze_payload(payload)), received)
    return received


def refusal(payload: Any) -> str:
    with pytest.raises(PayloadError) as caught:
        encode_payload(payload)
    assert isinstance(caught.value, ValueError)
    with pytest.raises(PayloadError, match=f"^{re.escape(str(caught.value))}$"):
        freeze_payload(payload)
    return str(caught.value)


@given(PAYLOADS)
def test_every_json_object_arrives_exactly(payload: dict[str, Any]) -> None:
    before = copy.deepcopy(payload)
    assert identical(arrived(payload), before)
    assert identical(payload, before)
    assert identical(json.loads(encode_payload(payload)), before)


@given(PAYLOADS, NOT_JSON, st.data())
def test_one_wrong_value_anywhere_is_refused_with_its_path(
    payload: dict[str, Any], wrong: Any, data: st.DataObject
) -> None:
    place: Any = payload
    path = "payload"
    while True:
        children = place.items() if isinstance(place, dict) else enumerate(place)
        deeper = [k for k, v in children if isinstance(v, dict | list)]
        if not deeper or data.draw(st.booleans()):
            break
        step = data.draw(st.sampled_from(deeper))
        path += f'["{step}"]' if isinstance(place, dict) else f"[{step}]"
        place = place[step]
    if isinstance(place, dict):
        place["wrong"] = wrong
        path += '["wrong"]'
    else:
        place.append(wrong)
        path += f"[{len(place) - 1}]"
    message = refusal(payload)
    shown = path.encode("unicode_escape").decode()
    if len(shown) <= 120:
        assert message.startswith(f"{shown}: ")
    else:
        assert message.startswith(shown[:60])


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ({"a": [0, 1, 2, {3}]}, 'payload["a"][3]: set is not JSON'),
        ({"a": b"x"}, 'payload["a"]: bytes is not JSON'),
        ({"a": (1,)}, 'payload["a"]: tuple is not JSON'),
        ({"a": {"b": [math.nan]}}, 'payload["a"]["b"][0]: nan is not JSON; use null or a string'),
        ({"a": -math.inf}, 'payload["a"]: -inf is not JSON; use null or a string'),
        ({"a": {1: 2}}, 'payload["a"]: key 1 is int, not str'),
        ({True: 2}, "payload: key True is bool, not str"),
        ({None: 2}, "payload: key None is NoneType, not str"),
        ({1.5: 2}, "payload: key 1.5 is float, not str"),
        ({(1, 2): 3}, "payload: key (1, 2) is tuple, not str"),
        ({"1": 1, 1: 2}, "payload: key 1 is int, not str"),
        ({"a": "x\ud800"}, 'payload["a"]: lone surrogate at position 1'),
        ({"a": "\ud83d\ude00"}, 'payload["a"]: lone surrogate at position 0'),
        ({"a": {"\udc00": 1}}, 'payload["a"]: key: lone surrogate at position 0'),
        ({"a": [10**5000]}, 'payload["a"][0]: the number has too many digits'),
        ({"ü\n": {1}}, 'payload["\\xfc\\n"]: set is not JSON'),
        ({"": {1}}, 'payload[""]: set is not JSON'),
        ([1], "payload must be a dict (a JSON object), not list"),
        ("{}", "payload must be a dict (a JSON object), not str"),
        (None, "payload must be a dict (a JSON object), not NoneType"),
        ((), "payload must be a dict (a JSON object), not tuple"),
        (math.nan, "payload must be a dict (a JSON object), not float"),
        (object(), "payload must be a dict (a JSON object), not object"),
    ],
)
def test_the_text_of_the_error(payload: object, message: str) -> None:
    assert refusal(payload) == message


def test_the_first_fault_in_reading_order_is_named() -> None:
    assert refusal({"a": [{"b": {1}}, {2}], "c": b""}) == 'payload["a"][0]["b"]: set is not JSON'


def test_a_long_path_is_shortened_in_the_error() -> None:
    message = refusal({"k" * 500: {"x" * 500: {1}}})
    assert message.startswith('payload["kkk')
    assert message.endswith('xxx"]: set is not JSON')
    assert len(message) < 200


@pytest.mark.parametrize("kind", [dict, list])
def test_a_hundred_levels_are_allowed_and_no_more(kind: type) -> None:
    deepest = nested(MAX_DEPTH, kind)
    assert MAX_DEPTH == 100
    assert arrived(deepest) == deepest
    assert refusal(nested(MAX_DEPTH + 1, kind)).endswith(": nested deeper than 100 levels")


@pytest.mark.parametrize("depth", [900, 200_000])
def test_extreme_depth_is_refused_not_a_crash(depth: int) -> None:
    assert refusal(nested(depth, list)).endswith(": nested deeper than 100 levels")


def test_braces_in_text_are_not_depth() -> None:
    payload = {"a": "[{" * 500}
    assert arrived(payload) == payload


def test_cycles_are_refused() -> None:
    payload: dict[str, Any] = {"a": []}
    payload["a"].append(payload)
    assert refusal(payload) == 'payload["a"][0]: contains itself'
    items: list[Any] = []
    items.append([items])
    assert refusal({"b": items}) == 'payload["b"][0][0]: contains itself'


def test_a_shared_object_is_no_cycle_and_arrives_in_each_place() -> None:
    shared = {"x": [1]}
    payload = {"a": shared, "b": [shared, shared]}
    received = arrived(payload)
    assert received == payload
    received["a"]["x"].append(2)
    assert received["b"] == [{"x": [1]}, {"x": [1]}]


@pytest.mark.parametrize(
    "value",
    [
        True,
        False,
        0,
        1,
        -1,
        2**53 + 1,
        2**63 - 1,
        2**63,
        -(2**63),
        10**4000,
        1.0,
        -0.0,
        5e-324,
        1.7976931348623157e308,
        0.1,
        "",
        "\x00",
        "\u2028",
        "😀",
        "\uffff",
        "\ud7ff 한",
        None,
        [],
        {},
    ],
)
def test_values_keep_their_type(value: Any) -> None:
    assert identical(arrived({"v": [value]}), {"v": [value]})


def test_subclasses_of_json_types_arrive_as_plain_values() -> None:
    class Color(enum.IntEnum):
        RED = 3

    class Kind(enum.StrEnum):
        NEW = "new"

    class Items(list[int]):
        pass

    payload = OrderedDict({Kind.NEW: Kind.NEW, "n": Color.RED, "l": Items([1])})
    received = arrived(payload)
    assert identical(received, {"new": "new", "n": 3, "l": [1]})


def test_what_cannot_be_compared_is_looked_through() -> None:
    class Odd(dict[str, Any]):
        def __eq__(self, other: object) -> bool:
            return False

    assert arrived(Odd(a=[1])) == {"a": [1]}
    assert refusal(Odd(a={1})) == 'payload["a"]: set is not JSON'


def test_subclasses_may_be_as_wide_and_as_deep_as_others() -> None:
    wide: OrderedDict[str, Any] = OrderedDict(a=[[] for _ in range(200)])
    assert arrived(wide) == {"a": [[]] * 200}
    assert arrived(OrderedDict(nested(MAX_DEPTH, list)))["a"]
    too_deep = OrderedDict(nested(MAX_DEPTH + 1, list))
    assert refusal(too_deep).endswith(": nested deeper than 100 levels")


def test_without_the_encoder_of_cpython_the_text_is_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    payload = {"a": [1.5, None, "é", {"b": True}]}
    expected = encode_payload(payload)
    monkeypatch.setattr(json.encoder, "c_make_encoder", None)
    monkeypatch.setattr(module, "_pieces", module._encoder())
    assert encode_payload(payload) == expected
    with pytest.raises(PayloadError, match="nan is not JSON"):
        encode_payload({"a": math.nan})


def test_a_named_tuple_is_refused_like_any_tuple() -> None:
    class Point(NamedTuple):
        x: int

    assert refusal({"p": Point(1)}) == 'payload["p"]: Point is not JSON'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the message is not JSON"),
        ("{", "the message is not JSON"),
        ('{"a": NaN}', "the message is not JSON: NaN is not JSON"),
        ('{"a": -Infinity}', "the message is not JSON: -Infinity is not JSON"),
        ('{"a":' + "[" * 100_000, "the message is not JSON"),
        ("[1]", "the message is a JSON list, not an object"),
        ("null", "the message is a JSON NoneType, not an object"),
    ],
)
def test_what_others_put_on_the_wire_is_refused_if_it_is_no_json_object(
    text: str, message: str
) -> None:
    with pytest.raises(PayloadError) as caught:
        decode_payload(text)
    assert str(caught.value).startswith(message)


@given(st.dictionaries(TEXT.filter(bool), TEXT, max_size=5))
def test_headers_are_text_and_copied(headers: dict[str, str]) -> None:
    checked = check_headers(headers)
    assert checked == headers
    assert checked is not headers


def test_no_headers() -> None:
    assert check_headers(None) == {}


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"": "x"}, "header name '' is not a non-empty str"),
        ({1: "x"}, "header name 1 is not a non-empty str"),
        ({"a": 1}, "headers['a']: int is not a str"),
        ({"a": None}, "headers['a']: NoneType is not a str"),
        ({"a": b"x"}, "headers['a']: bytes is not a str"),
        ({"a": "\ud800"}, "headers['a']: lone surrogate at position 0"),
        ({"x\udfff": "a"}, r"headers['x\udfff']: lone surrogate at position 1"),
        ([("a", "b")], "headers must be a mapping of str to str, not list"),
        ("a", "headers must be a mapping of str to str, not str"),
    ],
)
def test_other_headers_are_refused(headers: Any, message: str) -> None:
    with pytest.raises(PayloadError) as caught:
        check_headers(headers)
    assert str(caught.value) == message


def test_the_longest_number_does_not_depend_on_the_interpreters_limit() -> None:
    """Another process, with another limit, has to read it."""
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        assert decode_payload(encode_payload({"n": 10**4299})) == {"n": 10**4299}
        assert encode_payload({"text": "9" * 5000}) == '{"text":"%s"}' % ("9" * 5000)
        for number in (10**4300, -(10**4300)):
            assert refusal({"n": number}) == 'payload["n"]: the number has too many digits'
    finally:
        sys.set_int_max_str_digits(limit)
