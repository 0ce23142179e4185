"""Keys, group names and key filters: one set of rules, and errors that say which was broken."""

from __future__ import annotations

import enum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abe.backends.message_queue.base import KeyFilter, validate_group, validate_key
from abe.errors import AbeError, InvalidKeyError

SEGMENTS = st.text(
    st.characters(exclude_categories=["C", "Z"], exclude_characters=".*?[]#>$"),
    min_size=1,
    max_size=6,
)
KEYS = st.lists(SEGMENTS, min_size=1, max_size=6).map(".".join)


class Topic(enum.StrEnum):
    ORDERS = "orders.eu"


class OldTopic(str, enum.Enum):  # noqa: UP042 - formats as "OldTopic.ORDERS", unlike a StrEnum
    ORDERS = "orders.us"


@pytest.mark.parametrize(
    "key",
    ["a", "orders.eu.created", "Größe.日本", "a-b_c:d/e", "a$b", "a.$b", "x" * 200, "é" * 100],
)
def test_well_formed_keys_and_groups_are_returned_unchanged(key: str) -> None:
    assert validate_key(key) == key
    assert validate_group(key) == key


@pytest.mark.parametrize(
    ("key", "problem"),
    [
        ("", "key '' is empty"),
        ("a..b", "key 'a..b' has an empty segment; write segments separated by single dots"),
        (".a", "has an empty segment"),
        ("a.", "has an empty segment"),
        ("$dead.x", "key '$dead.x' starts with '$', which is reserved"),
        ("a b", "key 'a b' contains ' ', which keys and groups may not"),
        ("a\tb", r"contains '\t'"),
        ("a\n", r"contains '\n'"),
        ("a\x00", r"contains '\x00'"),
        ("a\x7f", r"contains '\x7f'"),
        ("a\x9f", r"contains '\x9f'"),
        ("a\u00a0b", r"contains '\xa0'"),
        ("a\u2028b", r"contains '\u2028'"),
        *((f"a.{c}", f"contains '{c}'") for c in "*?[]#>"),
        ("x" * 201, "has 201 bytes of UTF-8; the limit is 200"),
        ("é" * 101, "has 202 bytes of UTF-8; the limit is 200"),
        ("a\ud800", r"key 'a\ud800' holds a lone surrogate, which is not valid UTF-8"),
    ],
)
def test_the_error_shows_the_key_and_the_rule_it_breaks(key: str, problem: str) -> None:
    with pytest.raises(InvalidKeyError) as caught:
        validate_key(key)
    assert problem in str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, AbeError)
    with pytest.raises(InvalidKeyError, match=r"^group "):
        validate_group(key)


@pytest.mark.parametrize("key", [None, 3, b"a", ["a"]])
def test_what_is_not_a_str_is_refused_by_name(key: object) -> None:
    with pytest.raises(InvalidKeyError, match=f"key must be a str, not {type(key).__name__}"):
        validate_key(key)  # type: ignore[arg-type]


def test_a_long_key_is_shortened_in_the_error() -> None:
    with pytest.raises(InvalidKeyError) as caught:
        validate_key("x" * 10_000)
    assert len(str(caught.value)) < 150


def test_none_is_the_default_group() -> None:
    assert validate_group(None) is None


def test_a_member_of_an_enum_becomes_plain_text_and_never_leaks_to_other_callers() -> None:
    for member, text in ((Topic.ORDERS, "orders.eu"), (OldTopic.ORDERS, "orders.us")):
        for key in (member, text):
            valid = validate_key(key)
            assert type(valid) is str
            assert f"{valid}" == text
            assert type(KeyFilter([key]).patterns[0]) is str


@given(KEYS)
def test_any_text_within_the_rules_is_a_key(key: str) -> None:
    if len(key.encode()) <= 200:
        assert validate_key(key) == key
        assert KeyFilter(key).matches(key)
        assert KeyFilter("**").matches(key)


@given(st.text(max_size=30))
def test_any_text_is_a_key_or_named_in_the_error(key: str) -> None:
    problem = ""
    try:
        assert validate_key(key) == key
    except InvalidKeyError as error:
        problem = str(error)
    if problem:
        assert ascii(key) in problem
    else:
        assert key.encode().decode() == key
        assert not set(key) & set("*?[]#> \t\n")
        assert all(key.split("."))


@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        ("orders", ["orders"], ["order", "orders2", "orders.eu", "x.orders"]),
        ("orders.*", ["orders.eu", "orders.us"], ["orders", "orders.eu.new", "xorders.eu"]),
        ("orders.**", ["orders.eu", "orders.eu.new"], ["orders", "ordersx.eu"]),
        ("*.eu", ["orders.eu"], ["eu", "a.b.eu", "orders.us"]),
        ("*.*", ["a.b"], ["a", "a.b.c"]),
        ("*.b.**", ["a.b.c", "a.b.c.d"], ["a.b", "b.c"]),
        ("*", ["a"], ["a.b"]),
        ("**", ["a", "a.b", "a.b.c"], []),
        ("a+b|c.d", ["a+b|c.d"], ["aab", "c.d", "a+b|cxd"]),
    ],
)
def test_patterns(pattern: str, matching: list[str], other: list[str]) -> None:
    keys = KeyFilter(pattern)
    for _ in range(2):  # the second time from the cache
        assert [k for k in matching if not keys.matches(k)] == []
        assert [k for k in other if keys.matches(k)] == []


def test_several_patterns_match_what_any_of_them_matches() -> None:
    keys = KeyFilter(["b.*", "a", "b.*"])
    assert [k for k in ("a", "b.c", "a.c", "b") if keys.matches(k)] == ["a", "b.c"]
    assert keys.patterns == KeyFilter(("a", "b.*")).patterns == ("a", "b.*")
    assert keys


def test_no_filter_matches_everything() -> None:
    assert not KeyFilter()
    assert KeyFilter().patterns == ()
    assert KeyFilter().matches("any.key")


@pytest.mark.parametrize("pattern", ["a**", "**.a", "a.**.b", "*a", "a.b*"])
def test_a_malformed_pattern_is_named_and_the_rule_explained(pattern: str) -> None:
    with pytest.raises(InvalidKeyError) as caught:
        KeyFilter(["fine", pattern])
    assert str(caught.value) == (
        f"key filter {pattern!a} is malformed: '*' stands for one whole segment, "
        "'**' for one or more and only at the end"
    )


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        ("", "is empty"),
        ("a.", "has an empty segment"),
        ("a..*", "has an empty segment"),
        ("$dead.**", "starts with '$'"),
        ("a b", "contains ' '"),
        ("?", "contains '?'"),
        ("#", "contains '#'"),
        (">", "contains '>'"),
    ],
)
def test_a_pattern_that_no_key_could_match_is_refused_as_a_key_is(
    pattern: str, problem: str
) -> None:
    with pytest.raises(InvalidKeyError) as caught:
        KeyFilter(["fine", pattern])
    assert str(caught.value).startswith(f"key filter {pattern!a} is malformed: it {problem}")


@pytest.mark.parametrize("pattern", [1, None, b"a", ["a"]])
def test_a_pattern_that_is_not_a_str_is_refused(pattern: object) -> None:
    with pytest.raises(InvalidKeyError, match="key filter must be a str, not"):
        KeyFilter(["a", pattern])  # type: ignore[list-item]


def test_an_empty_list_of_patterns_is_refused_because_it_would_match_nothing() -> None:
    with pytest.raises(InvalidKeyError, match="use None for every key"):
        KeyFilter([])


def test_the_cache_of_a_filter_stays_bounded() -> None:
    keys = KeyFilter("a.*")
    for n in range(25_000):
        assert keys.matches(f"a.{n}")
    assert len(keys._cache) <= 10_001
