"""Results as they are shown: escaping, redaction, limits."""

from __future__ import annotations

import json
import pickle
import time
from datetime import UTC, datetime, timedelta, timezone
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import abe
from abe._redact import redact
from abe.backends.message_queue.base.message import Message
from abe.display.results import Backlog, Count, Messages
from abe.display.table import Table
from abe.display.text import MAX_CELL, cell, plural, preview, visible, when
from abe.types import KeyStats, QueueStats

HOSTILE = "<script>alert(1)</script>\"'onload=x&amp;\x1b[31m\u202eabc\x00\x9b\u2028"
INVISIBLE = [
    *map(chr, range(32)),
    *map(chr, range(0x7F, 0xA0)),
    "\u200b",
    "\u202e",
    "\u2066",
    "\ud800",
]


class Tags(HTMLParser):
    """Collect the tags and the text of a piece of HTML."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("character", INVISIBLE)
def test_invisible_characters_become_escapes(character: str) -> None:
    shown = visible(f"a{character}b")
    assert shown.startswith("a\\")
    assert shown.endswith("b")
    assert shown.isprintable()


def test_what_can_be_seen_stays() -> None:
    for text in ("naïve", "日本語", "مرحبا", "👩‍👩‍👧 ❤️", "a\\nb", "{{x}} $5"):
        assert visible(text) == text


@given(st.text(st.characters(exclude_categories=[])), st.integers(1, 50))
def test_text_is_one_short_printable_line(text: str, limit: int) -> None:
    shown = visible(text, limit)
    assert len(shown) <= limit
    assert not any(c in shown for c in INVISIBLE)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis://:hunter2@host:6379/0", "redis://***@host:6379/0"),
        ("amqp://me:hunter2@host", "amqp://***@host"),
        (
            "see redis://me:p@ss@host and https://a:b@c/d",
            "see redis://***@host and https://***@c/d",
        ),
        ("postgresql+psycopg://u:hunter2@h", "postgresql+psycopg://***@h"),
        ("https://h/?a=1&access_token=hunter2&b=2", "https://h/?a=1&access_token=***&b=2"),
        ("https://h/?X-Amz-Signature=hunter2#x", "https://h/?X-Amz-Signature=***#x"),
        ("https://host/a@b", "https://host/a@b"),
        ("redis://[user:password@]host:port/db", "redis://[user:password@]host:port/db"),
        ("redis://[user:password@host", "redis://***@host"),
        ("me@example.org", "me@example.org"),
        ("a://b c@d", "a://b c@d"),
    ],
)
def test_credentials_in_urls_are_redacted(text: str, shown: str) -> None:
    assert redact(text) == shown
    assert json.loads(preview({"url": text}))["url"] == shown


def test_a_credential_that_the_limit_cuts_is_redacted() -> None:
    url = f"redis://user:{'hunter2' * 200}@host"
    for padding in range(0, 700, 7):
        for shown in (cell("x" * padding + " " + url), preview(["x" * padding + " " + url])):
            assert "hunter2" not in shown


@pytest.mark.parametrize(
    "name",
    [
        "password",
        "db_password",
        "API-KEY",
        "apikey",
        "x.token",
        "Secret",
        "DB_PASS",
        "clientSecret",
        "accessToken",
        "x-api-key",
        "AWS_SECRET_ACCESS_KEY",
    ],
)
def test_values_under_confidential_names_are_hidden(name: str) -> None:
    assert preview({name: "hunter2"}) == f'{{"{name}": "***"}}'
    assert preview([{"a": {name: "hunter2"}}]) == f'[{{"a": {{"{name}": "***"}}}}]'


@pytest.mark.parametrize(
    "name",
    [
        "key",
        "monkey",
        "tokens",
        "tokenizer",
        "passenger",
        "author",
        "compass",
        "bypass_token_count",
    ],
)
def test_values_under_ordinary_names_are_shown(name: str) -> None:
    assert preview({name: "x"}) == f'{{"{name}": "x"}}'


def test_flags_are_no_secrets() -> None:
    assert preview({"token": True, "secret": None}) == '{"token": true, "secret": null}'


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(values, st.integers(2, 300))
def test_previews_are_bounded_and_visible(value: Any, limit: int) -> None:
    shown = preview(value, limit)
    assert len(shown) <= limit
    assert not any(c in shown for c in INVISIBLE)


def test_previews_are_json_where_they_fit() -> None:
    payload = {"a": [1, 2.5, None, True], "b": {"c": 'x "y" \\ é'}}
    assert json.loads(preview(payload)) == payload
    assert preview({"a": {1}}) == '{"a": <set>}'
    assert preview({"n": 10**5000}) == '{"n": <a very long number>}'


@pytest.mark.parametrize(
    "value",
    [
        "x" * 5_000_000,
        ["y"] * 1_000_000,
        {"a": "redis://u:" + "\x1b" * 5_000_000},
        {"a" * 5_000_000: 1},
        {"a": "a://" * 1_250_000},
        {"?a=" * 1_000_000: "?token=" * 1_000_000},
    ],
    ids=["string", "list", "escapes", "name", "urls", "queries"],
)
def test_the_size_of_the_data_does_not_matter(value: Any) -> None:
    payload = value if isinstance(value, dict) else {"v": value}
    messages = Messages([Message(payload, key="k")] * 3)
    times = []
    for _ in range(3):
        start = time.thread_time()
        assert len(repr(messages)) < 2000
        assert len(messages._repr_html_()) < 4000
        times.append(time.thread_time() - start)
    assert min(times) < 0.25, "seconds of this thread, whatever else the machine does"


def test_deep_values() -> None:
    value: Any = []
    for _ in range(5000):
        value = [value]
    assert len(preview(value)) == MAX_CELL


def test_html_is_escaped_everywhere() -> None:
    table = Table(HOSTILE, [HOSTILE, HOSTILE], [[HOSTILE, HOSTILE]], notes=[HOSTILE])
    tags = Tags(table.to_html()).tags
    assert {tag for tag, _ in tags} == {
        *("div", "table", "caption", "thead", "tr", "th", "tbody", "td", "p")
    }
    names = {name for _, attributes in tags for name in attributes}
    assert names == {"scope", "style", "role", "tabindex", "aria-label"}


def test_html_of_hostile_messages() -> None:
    message = Message({HOSTILE: HOSTILE}, key=HOSTILE, id=HOSTILE, headers={HOSTILE: HOSTILE})
    messages = Messages([message], HOSTILE)
    html = messages._repr_html_()
    assert "<script" not in html
    assert not any(c in html.replace("\n", "") for c in INVISIBLE)
    assert not any(c in repr(messages).replace("\n", "") for c in INVISIBLE)
    assert "\\u202e" in html


def test_tables_are_accessible() -> None:
    tags = Tags(Table("c", ["a", "b"], [["1", "2"]]).to_html()).tags
    assert not any("class" in attributes for _, attributes in tags)
    assert [a["scope"] for tag, a in tags if tag == "th"] == ["col", "col", "row"]
    assert tags[0] == (
        "div",
        {"role": "region", "tabindex": "0", "aria-label": "c", "style": "overflow-x:auto"},
    )
    assert tags[2][0] == "caption"


def test_times_are_not_broken_into_lines() -> None:
    moment = datetime(2026, 1, 2, tzinfo=UTC)
    page = Messages([Message({"i": "x" * 150}, key="k", timestamp=moment)])._repr_html_()
    assert '<td style="text-align:left;white-space:nowrap">2026-01-02 00:00:00.000Z</td>' in page


def test_text_tables_are_aligned() -> None:
    table = Table("caption", ["a", "long"], [["日本", "x"], ["1", "y"]], notes=["note"])
    assert table.to_text().split("\n") == [
        "caption",
        "a     long",
        "----  ----",
        "日本  x",
        "1     y",
        "note",
    ]


def test_wide_tables_are_folded() -> None:
    table = Table("caption", ["a", "long"], [["k", "日本語日本語 and more"], ["1", "y"]])
    assert table.lines(12) == [
        "a  long",
        "-  ---------",
        "k  日本語日",
        "   本語 and",
        "   more",
        "1  y",
    ]


def test_long_lists_are_cut() -> None:
    messages = Messages(Message({"i": i}, key="k") for i in range(10_000))
    assert repr(messages).endswith("… and 9,950 more, not shown")
    assert repr(messages).count("\n") == 53
    assert messages._repr_html_().count("<tr>") == 51


def test_messages_are_a_list() -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5, 678900, UTC)
    messages = Messages([Message({"i": i}, key="k", timestamp=moment) for i in range(3)], "from x")
    assert messages == [{"i": 0}, {"i": 1}, {"i": 2}]
    assert messages.payloads == [{"i": 0}, {"i": 1}, {"i": 2}]
    assert type(messages.payloads[0]) is dict
    assert messages[0].key == "k"
    assert isinstance(messages[1:], Messages)
    assert messages[1:].payloads == [{"i": 1}, {"i": 2}]
    assert repr(messages[:1]).split("\n") == [
        "1 message from x",
        "#  key  payload   time",
        "-  ---  --------  ------------------------",
        '0  k    {"i": 0}  2026-01-02 03:04:05.678Z',
    ]
    assert json.loads(json.dumps(messages)) == messages


def test_columns_that_say_nothing_are_left_out() -> None:
    plain = repr(Messages([Message({"i": 0})]))
    assert plain.split("\n")[1] == "#  payload"
    full = repr(Messages([Message({"i": 0}, attempt=2, headers={"a": "b"}), Message({})]))
    assert full.split("\n")[1] == "#  payload   headers     attempt"


def test_no_messages() -> None:
    assert repr(Messages()) == "0 messages"
    # A table without rows has no width, and its caption would be broken at every word.
    assert Messages([], "from x")._repr_html_() == "<p>0 messages from x</p>"


def test_a_backlog_is_the_statistics() -> None:
    entries = (KeyStats("b", None, 1), KeyStats("a", "x", 2), KeyStats("a", None, 4))
    backlog = Backlog(entries, caption="of memory")
    assert isinstance(backlog, QueueStats)
    assert backlog == QueueStats(entries)
    assert QueueStats(entries) == backlog
    assert hash(backlog) == hash(QueueStats(entries))
    assert (len(backlog), backlog[0], backlog.total("ready")) == (3, entries[0], 5)
    assert [(e.key, e.group) for e in backlog.select()] == [("a", None), ("b", None), ("a", "x")]
    assert [e.ready for e in backlog.select("a", [None])] == [4]
    assert repr(pickle.loads(pickle.dumps(backlog))).splitlines()[0] == "backlog: 3 keys and groups"
    assert repr(backlog.select("c")) == "backlog of memory: nothing is waiting"


def test_a_count_is_a_number() -> None:
    result = Count(1200, "published 1,200 messages to orders.created on memory")
    assert result == 1200
    assert repr(result) == "published 1,200 messages to orders.created on memory"
    assert f"{result} {result:,} {json.dumps(result)}" == "1200 1,200 1200"
    assert repr(pickle.loads(pickle.dumps(result))) == repr(result)


def test_small_things() -> None:
    assert [plural(n, "message") for n in (0, 1, 2)] == ["0 messages", "1 message", "2 messages"]
    assert when(None) == ""
    east = timezone(timedelta(hours=2))
    assert when(datetime(2026, 1, 1, 1, tzinfo=east)) == "2025-12-31 23:00:00.000Z"


def test_the_facade_returns_results_that_show_themselves() -> None:
    with abe.connect("memory", env={"ABE_MEMORY_NAME": "display"}) as q:
        assert repr(q.stats()) == "backlog of memory: nothing is waiting"
        assert q.take(1, timeout=0) == []
        q.publish_many([{"n": n} for n in range(3)], key="k")
        waiting = q.peek()
        assert waiting[1:].payloads == [{"n": 1}, {"n": 2}]
        assert repr(waiting).startswith("3 messages waiting on memory for the default group, not")
        backlog = q.stats()
        assert isinstance(backlog, QueueStats)
        assert "<table>" in backlog._repr_html_()
        assert backlog.total("ready") == 3
        assert repr(q.take(2, group="g")).startswith("2 messages from memory, group g\n")
        with q.batch(1, group="g") as (message,):
            message.reject("no such customer")
        (letter,) = dead = q.dead_letters(group="g")
        assert repr(dead).startswith("1 dead letter of group g on memory\n")
        assert "no such customer" in repr(dead)
        assert letter["n"] == 2
