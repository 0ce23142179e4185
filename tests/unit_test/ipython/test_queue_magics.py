"""Looking at a queue and cleaning it up: peek, stats, dead, purge, settings, frames."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import Any

import pytest
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell

import abe
from abe.backends.message_queue.base.message import Message
from abe.display.plot import bars, sparkline
from abe.display.results import Backlog, Count, DeadLetters, Messages
from abe.display.text import limits
from abe.types import KeyStats

Run = Callable[..., Any]


class Tags(HTMLParser):
    """Collect the tags of a piece of HTML."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_peek_takes_nothing(run: Run, q: abe.SyncBackend) -> None:
    q.publish_many([{"n": n} for n in range(12)], key="a.x")
    q.publish("b", {"n": 12})
    first = run("%abe_peek -o kept")
    assert isinstance(first, Messages)
    assert [m["n"] for m in first] == list(range(10))
    assert run("kept") is first
    assert repr(first).startswith(
        "10 messages waiting on memory for the default group, not taken\n"
    )
    assert [m["n"] for m in run("%abe_peek b -g other -n 3")] == [12]
    assert len(q.take(13, timeout=5)) == 13
    assert run("%abe_peek") == []


def test_stats(run: Run, q: abe.SyncBackend) -> None:
    assert q.take(1, timeout=0) == []  # now the default group exists
    q.publish_many([{"n": n} for n in range(3)], key="a.x")
    q.publish("a.y", {}, delay=3600)
    q.take(1, group="billing")
    backlog = run("%abe_stats -o kept")
    assert isinstance(backlog, Backlog)
    assert run("kept") is backlog
    numbers = {(e.key, e.group): (e.ready, e.delayed) for e in backlog}
    assert numbers["a.x", None] == (3, 0)
    assert numbers["a.x", "billing"] == (2, 0)
    assert numbers["a.y", None] == (0, 1)
    lines = repr(backlog).split("\n")
    assert lines[0].startswith("backlog of memory: ")
    assert lines[1].split() == [
        "key",
        "group",
        "ready",
        "in",
        "flight",
        "delayed",
        "dead",
        "oldest",
    ]
    assert {e.group for e in run("%abe_stats a.x -g billing")} == {"billing"}
    assert {e.group for e in run('%abe_stats -g ""')} == {None}
    nothing = run("%abe_stats nothing.*")
    assert len(nothing) == 0
    assert repr(nothing) == "backlog of memory: nothing is waiting"


def test_the_plot_is_accessible_and_takes_the_pages_colour(run: Run, q: abe.SyncBackend) -> None:
    assert q.take(1, timeout=0) == []
    q.publish_many([{"n": n} for n in range(3)], key="a.x")
    q.take(1, group="billing")
    html = run("%abe_stats")._repr_html_()
    (svg,) = [attributes for tag, attributes in Tags(html).tags if tag == "svg"]
    assert svg["role"] == "img"
    assert svg["viewbox"]
    assert "a.x · billing: 2 ready" in (svg["aria-label"] or "")
    colours = set(re.findall(r'(?:fill|stroke)="([^"]*)"', html))
    assert colours == {"currentColor"}


def test_a_backlog_of_nothing_has_no_plot() -> None:
    empty = Backlog([KeyStats("k", None, 0, 0, 0, 0)])
    assert "<svg" not in empty._repr_html_()
    assert bars("t", [], ["a"], "") == ""
    assert sparkline([0.0, 0.0], "t") == ""


def test_unknown_and_estimated_numbers() -> None:
    entry = KeyStats("k", "g", ready=None, oldest_age=90061.0)
    text = repr(Backlog([entry], approximate=True))
    assert re.search(r"k +g +\? +\? +\? +\? +1 d 1 h", text)
    assert text.endswith("The broker only estimates these numbers.")


@pytest.mark.parametrize(
    ("seconds", "shown"), [(None, ""), (0.04, "0.0 s"), (59.9, "59.9 s"), (61, "1 min 1 s"),
                           (3600, "1 h 0 min"), (200_000, "2 d 7 h")],
)  # fmt: skip
def test_ages(seconds: float | None, shown: str) -> None:
    assert Backlog([KeyStats("k", None, 1, oldest_age=seconds)]).table().rows[0][-1] == shown


def test_hostile_keys_in_the_plot() -> None:
    hostile = '<img/src=x/onerror="alert(1)">\u202e\x1b[31m'
    html = Backlog([KeyStats(hostile, hostile, 5), KeyStats("k", None, 1)])._repr_html_()
    assert {tag for tag, _ in Tags(html).tags} <= {
        *("div", "table", "caption", "thead", "tbody", "tr", "th", "td", "p"),
        *("svg", "title", "rect", "text"),
    }
    assert "\u202e" not in html
    assert "\x1b" not in html


def test_a_long_backlog_is_bounded() -> None:
    html = Backlog([KeyStats(f"key.{n}" * 20, None, n) for n in range(5000)])._repr_html_()
    assert html.count("<tr>") == 51
    assert html.count("<rect") == 20 + 4
    assert len(html) < 60_000


def reject_all(q: abe.SyncBackend, group: str | None = None) -> None:
    with q.batch(10, timeout=0.2, group=group) as messages:
        for message in messages:
            message.reject("no such customer")


def test_dead_letters(run: Run, q: abe.SyncBackend) -> None:
    q.publish_many([{"n": 1}, {"n": 2}], key="orders.created")
    reject_all(q)
    found = run("found = %abe_dead\nfound")
    assert isinstance(found, DeadLetters)
    assert found == [{"n": 1}, {"n": 2}]
    text = repr(found)
    assert text.startswith("2 dead letters of the default group on memory\n")
    assert "no such customer" in text
    assert "orders.created" in text
    assert found[0].id in text
    assert len(run("%abe_dead list -n 1")) == 1
    assert run("%abe_dead list -g billing") == []
    put_back = run("%abe_dead replay --id {{found[1].id}}")
    assert put_back == 1
    assert isinstance(put_back, Count)
    assert repr(put_back) == "replayed 1 dead letter of the default group on memory"
    assert run("%abe_consume -n 5") == [{"n": 2}]
    assert run("%abe_dead replay") == 1
    assert run("%abe_dead") == []


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("rplay", "must be one of list, replay, not 'rplay'; did you mean replay?"),
        ("list all", "all is one word too many"),
        ("--id x", "--id selects messages to replay"),
        ("-n 0", "must be a whole number"),
    ],
)
def test_wrong_arguments_of_dead(run: Run, q: abe.SyncBackend, line: str, problem: str) -> None:
    with pytest.raises(UsageError, match=re.escape(problem)):
        run(f"%abe_dead {line}")


def test_purge(run: Run, q: abe.SyncBackend) -> None:
    q.publish_many([("a.x", {}), ("a.y", {}), ("b", {})])
    with pytest.raises(UsageError) as caught:
        run("%abe_purge a.*")
    assert "this deletes 2 messages waiting for the default group on memory; repeat" in str(
        caught.value
    )
    dropped = run("%abe_purge a.* --yes -o kept")
    assert dropped == run("kept") == 2
    assert repr(dropped) == "purged 2 messages waiting for the default group on memory"
    assert len(q.peek()) == 1


def test_consume_ends_when_it_is_quiet(run: Run, q: abe.SyncBackend) -> None:
    q.publish_many([{"n": 1}, {"n": 2}], key="k")
    started = time.monotonic()
    assert len(run("%abe_consume -t 30")) == 2
    assert time.monotonic() - started < 15
    q.publish("k", {"n": 3})
    assert len(run("%abe_consume -t 30 -q 0")) == 1


def test_settings(
    shell: InteractiveShell, run: Run, q: abe.SyncBackend, capsys: pytest.CaptureFixture[str]
) -> None:
    assert q.take(1, timeout=0) == []
    q.publish_many([{"n": "x" * 100}] * 30, key="k")
    run("%config AbeMagics.limit = 20")
    run("%config AbeMagics.rows = 3")
    run("%config AbeMagics.cell_length = 20")
    run('%config AbeMagics.group = "billing"')
    run("%config AbeMagics.timeout = 0.1")
    seen = run("%abe_consume")
    assert len(seen) == 20
    assert "group billing" in capsys.readouterr().out
    lines = repr(seen).split("\n")
    assert lines[-1] == "… and 17 more, not shown"
    assert max(map(len, lines[3:6])) < 70
    assert len(run('%abe_peek -g "" -n 30')) == 30
    run("%reload_ext abe")
    assert limits.rows == 3
    del shell.config["AbeMagics"]
    run("%reload_ext abe")
    assert (limits.rows, limits.cell) == (50, 160)


def test_a_wrong_setting_does_not_keep_the_extension_out(
    shell: InteractiveShell, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.run_cell("%config AbeMagics.rows = 7")
    shell.run_cell("%config AbeMagics.limit = 0")
    capsys.readouterr()
    run("%reload_ext abe")
    assert capsys.readouterr().out.startswith("abe: ignoring a setting: The value of the 'limit' ")
    assert [type(c).__name__ for c in shell.configurables].count("AbeMagics") == 1
    run("%abe_backends")
    magics = shell.magics_manager.registry["AbeMagics"]
    assert (magics.limit, magics.rows, limits.rows) == (10, 7, 7)
    capsys.readouterr()
    run("%reload_ext abe")
    assert capsys.readouterr().out == ""
    assert shell.magics_manager.registry["AbeMagics"].rows == 7
    shell.config.pop("AbeMagics", None)


def test_to_frame() -> None:
    moment = datetime(2026, 1, 2, tzinfo=UTC)
    messages = Messages(
        [
            Message({"n": 1, "_id": "mine", "deep": {"a": [1]}}, "i1", "k1", moment, 2),
            Message({"n": 2.5, "x": None}, "i2", "k2", moment),
        ]
    )
    frame = messages.to_frame()
    assert list(frame.columns) == [
        *("_id", "_key", "_timestamp", "_attempt", "n", "_id_payload", "deep", "x")
    ]
    assert list(frame["_id"]) == ["i1", "i2"]
    assert list(frame["_attempt"]) == [2, 1]
    assert frame["_timestamp"].iloc[0] == moment
    assert frame["deep"].iloc[0] == {"a": [1]}
    assert list(frame.index) == [0, 1]
    assert len(Messages().to_frame()) == 0
    assert list(Messages([Message({"a": 1})]).to_frame()["_timestamp"].isna()) == [True]
    clash = Messages([Message({"_id": 1, "_id_payload": 2})]).to_frame()
    assert clash["_id_payload"].iloc[0] == 2
    assert clash["_id_payload_payload"].iloc[0] == 1


def test_to_frame_without_pandas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(abe.UnsupportedError, match="%pip install pandas"):
        Messages().to_frame()
