"""Publishing many: DataFrames, files, generators, progress, interrupts."""

from __future__ import annotations

import asyncio
import json
import math
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell

import abe
from abe.ipython import progress
from abe.ipython.frames import is_frame, rows_of
from abe.ipython.payloads import payloads_of
from tests.unit_test.ipython.conftest import published

Run = Callable[..., Any]


def test_a_pandas_frame() -> None:
    frame = pd.DataFrame(
        {
            "int": [1, 2],
            "float": [1.5, math.nan],
            "text": ["a", None],
            "flag": [True, False],
            "nullable": pd.array([7, None], dtype="Int64"),
            "day": pd.Series(["2026-01-02T03:04:05.678", None], ["x", "y"], "datetime64[us]"),
            "zone": pd.DatetimeIndex([pd.Timestamp("2026-01-02", tz="Europe/Berlin"), pd.NaT]),
            "wait": pd.to_timedelta(["90s", None]),
            "kind": pd.Categorical(["x", None]),
            "month": pd.PeriodIndex(["2026-01", "2026-02"], freq="M"),
            "mixed": [np.int64(5), {"a": [np.float32(0.5), pd.NaT, date(2026, 1, 2)]}],
            "array": [np.array([1, 2]), np.datetime64("2026-01-02T03:04:05", "ns")],
            "clock": [time(1, 2), np.bool_(True)],
        },
        index=["x", "y"],
    )
    rows = published(payloads_of(frame, "df"))
    assert rows == [
        {
            "int": 1,
            "float": 1.5,
            "text": "a",
            "flag": True,
            "nullable": 7,
            "day": "2026-01-02T03:04:05.678000",
            "zone": "2026-01-02T00:00:00+01:00",
            "wait": "P0DT0H1M30S",
            "kind": "x",
            "month": "2026-01",
            "mixed": 5,
            "array": [1, 2],
            "clock": "01:02:00",
        },
        {
            "int": 2,
            "float": None,
            "text": None,
            "flag": False,
            "nullable": None,
            "day": None,
            "zone": None,
            "wait": None,
            "kind": None,
            "month": "2026-02",
            "mixed": {"a": [0.5, None, "2026-01-02"]},
            "array": "2026-01-02T03:04:05",
            "clock": True,
        },
    ]
    assert json.loads(json.dumps(rows)) == rows


def test_a_polars_frame() -> None:
    frame = pl.DataFrame(
        {
            "int": [1, None],
            "text": ["a", None],
            "day": [date(2026, 1, 2), None],
            "moment": [datetime(2026, 1, 2, 3, tzinfo=timezone.utc), None],  # noqa: UP017
            "wait": [timedelta(days=-1, seconds=30), None],
            "list": [[1, 2], []],
            "struct": [{"a": 1, "b": date(2026, 1, 2)}, {"a": 2, "b": None}],
        }
    )
    assert published(payloads_of(frame, "df")) == [
        {
            "int": 1,
            "text": "a",
            "day": "2026-01-02",
            "moment": "2026-01-02T03:00:00+00:00",
            "wait": "-P0DT23H59M30S",
            "list": [1, 2],
            "struct": {"a": 1, "b": "2026-01-02"},
        },
        {
            "int": None,
            "text": None,
            "day": None,
            "moment": None,
            "wait": None,
            "list": [],
            "struct": {"a": 2, "b": None},
        },
    ]


scalars = st.one_of(
    st.lists(st.none() | st.booleans(), min_size=2, max_size=2),
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=2, max_size=2),
    st.lists(st.none() | st.floats(allow_nan=False, allow_infinity=False), min_size=2, max_size=2),
    st.lists(st.none() | st.text(st.characters(codec="utf-8")), min_size=2, max_size=2),
)


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), scalars, max_size=4))
def test_any_frame_gives_its_values(columns: dict[str, list[Any]]) -> None:
    expected = [{name: values[i] for name, values in columns.items()} for i in range(2)]
    assert published(payloads_of(pl.DataFrame(columns), "df")) == (expected if columns else [])
    frame = pd.DataFrame(columns, index=[5, 6], dtype=object)
    assert published(payloads_of(frame, "df")) == expected


@pytest.mark.parametrize(
    ("frame", "problem"),
    [
        (pd.DataFrame([[1, 2]]), "df: column 0 is named by int, not str; rename the columns first"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "df: two columns are called 'a'"),
        (pd.DataFrame({"a": [1.0, math.inf]}), 'item 1: payload["a"]: inf is not JSON'),
        (pd.DataFrame({"a": [Decimal(1)]}), 'item 0: payload["a"]: Decimal is not JSON'),
        (pd.DataFrame({"a": [b"x"]}), 'item 0: payload["a"]: bytes is not JSON'),
        (pd.DataFrame({"a": [{1: 2}]}), 'item 0: payload["a"]: key 1 is int, not str'),
        (pl.DataFrame({"a": [1.0, math.nan]}), 'item 1: payload["a"]: nan is not JSON'),
    ],
)
def test_frames_that_are_refused(frame: Any, problem: str) -> None:
    with pytest.raises(abe.PayloadError) as caught:
        published(payloads_of(frame, "df"))
    assert str(caught.value).startswith(problem)


def test_what_is_a_frame() -> None:
    class Mine(pd.DataFrame):
        pass

    assert published(payloads_of(Mine({"n": [1]}), "df")) == [{"n": 1}]
    assert not is_frame(pl.LazyFrame())
    assert not is_frame(type("DataFrame", (), {})())
    assert rows_of(pd.DataFrame(index=[0, 1]), "df") == [{}, {}]
    with pytest.raises(abe.PayloadError, match="payload must be a dict"):
        published(payloads_of(pd.Series([5]), "s"))


def test_the_whole_frame_is_checked_first(
    shell: InteractiveShell, run: Run, q: abe.SyncBackend
) -> None:
    shell.user_ns["df"] = pd.DataFrame({"n": [1.0, 2.0, math.inf]})
    with pytest.raises(abe.PayloadError, match=r'df|item 2: payload\["n"\]'):
        run("%abe_publish k -i df")
    assert q.take(1, timeout=0) == []
    shell.user_ns["df"] = pd.DataFrame({"n": [1, 2], "t": pd.to_datetime(["2026-01-01"] * 2)})
    assert run("%abe_publish k -i df") == 2
    assert run("%abe_publish k {{df.head(1)}}") == 1
    assert q.take(3) == [{"n": n, "t": "2026-01-01T00:00:00"} for n in (1, 2, 1)]


def test_there_and_back(shell: InteractiveShell, run: Run, q: abe.SyncBackend) -> None:
    shell.user_ns["df"] = df = pd.DataFrame({"n": [1, 2], "s": ["a", None]})
    run("%abe_publish k -i df")
    back = run("%abe_consume -n 2").to_frame()
    assert back[["n", "s"]].equals(df.astype(back[["n", "s"]].dtypes))
    assert list(back["_key"]) == ["k", "k"]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.csv", "\ufeffn,s\n1,é\n2,\n", [{"n": "1", "s": "é"}, {"n": "2", "s": ""}]),
        (
            "b.csv",
            'n,s\r\n1,"a\r\nb"\r\n\r\n2,\r\n',
            [{"n": "1", "s": "a\r\nb"}, {"n": "2", "s": ""}],
        ),
        ("a.jsonl", '{"n": 1}\n\n{"n": 2}\n', [{"n": 1}, {"n": 2}]),
        ("a.NDJSON", '{"n": 1}', [{"n": 1}]),
        ("a.json", '[{"n": 1}, {"s": "{{n}}"}]', [{"n": 1}, {"s": "{{n}}"}]),
        ("a b.yml", "- n: 1", [{"n": 1}]),
        ("a.txt --format jsonl", '{"n": 1}', [{"n": 1}]),
    ],
)
def test_files(
    run: Run, q: abe.SyncBackend, tmp_path: Path, name: str, text: str, expected: list[Any]
) -> None:
    file, _, more = name.partition(" --")
    (tmp_path / file).write_text(text, encoding="utf-8", newline="")
    more = f"--{more}" if more else ""
    assert run(f'%abe_publish k --file "{tmp_path / file}" {more}') == len(expected)
    assert q.take(len(expected)) == expected


def test_files_that_are_refused(
    run: Run, q: abe.SyncBackend, tmp_path: Path, shell: InteractiveShell
) -> None:
    shell.user_ns["calls"] = calls = list[int]()
    cases: list[tuple[str, str | bytes, str]] = [
        ("a.txt", "", "the format of a.txt cannot be told from its name; give --format json|"),
        ("a.csv", b"n\n\xff", "a.csv is not UTF-8: invalid start byte at byte 2"),
        ("a.jsonl", '{"n": 1}\n{"n": }', "a.jsonl: line 2: the payload is not JSON"),
        ("a.json", '{"n": {{calls.append(1)}}}', r"\{\{calls.append.1.\}\} is not evaluated in a"),
        ("b.json", "{{calls.append(1)}}", "is not evaluated in a file"),
    ]
    for name, text, problem in cases:
        (tmp_path / name).write_bytes(text.encode() if isinstance(text, str) else text)
        with pytest.raises(abe.PayloadError, match=problem):
            run(f"%abe_publish k -F {tmp_path / name}")
    with pytest.raises(FileNotFoundError):
        run("%abe_publish k -F /nowhere/a.csv")
    with pytest.raises(UsageError, match="only one of -i calls and --file x can be published"):
        run("%abe_publish k -i calls -F x")
    assert calls == []
    assert q.take(1, timeout=0) == []


def test_progress(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with progress.Progress(1000, "published", live=False) as quick:
        quick(500)
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    with progress.Progress(1000, "published", live=False) as slow:
        slow(500)
        slow(1000)
    out, err = capsys.readouterr()
    assert (out, err) == ("published 1,000 of 1,000\n", "")


def test_progress_in_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with progress.Progress(1000, "published", live=False) as slow:
        slow(500)
    assert capsys.readouterr().err == "\rpublished 500 of 1,000\rpublished 500 of 1,000\n"


def test_progress_of_a_generator(
    shell: InteractiveShell,
    run: Run,
    q: abe.SyncBackend,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also while it is read, which may take longer than sending."""
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    for source in ("-i orders", "{{orders}}"):
        shell.user_ns["orders"] = ({"n": n} for n in range(3))
        run(f"%abe_publish k {source};")
        assert capsys.readouterr().out == "checked 3\npublished 3 of 3\n"


@pytest.fixture(autouse=True)
def _interrupts_are_not_ignored() -> Iterator[None]:
    """As they are where a shell has started the tests in the background."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


class Interrupting:
    """A plain backend that interrupts the main thread while it publishes message 50."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    async def publish(self, key: str, payload: Any, **extras: Any) -> None:
        if len(self.sent) == 50:
            signal.raise_signal(signal.SIGINT)
            await asyncio.sleep(0.01)  # in which the cancellation comes
        self.sent.append(payload)

    async def consume(self, *, group: str | None = None) -> AsyncIterator[Any]:
        yield {}

    @classmethod
    def from_env(cls) -> Self:
        return cls()


def test_an_interrupt_leaves_an_exact_count(
    shell: InteractiveShell, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.user_ns["plain"] = plain = Interrupting()

    def orders() -> Iterator[dict[str, int]]:
        for n in range(3000):
            yield {"n": n}

    shell.user_ns["orders"] = orders()
    run("%abe_connect -i plain")
    capsys.readouterr()
    with pytest.raises(KeyboardInterrupt):
        run("%abe_publish k -i orders")
    said = capsys.readouterr().out
    assert 50 < len(plain.sent) < 3000
    assert f"interrupted: {len(plain.sent):,} of 3,000 are published\n" in said
    assert [item["n"] for item in plain.sent] == list(range(len(plain.sent)))


def test_an_interrupt_of_a_single_message_says_what_became_of_it(
    shell: InteractiveShell, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.user_ns["plain"] = plain = Interrupting()
    plain.sent = [{}] * 50
    run("%abe_connect -i plain")
    with pytest.raises(KeyboardInterrupt):
        run('%abe_publish k {"n": 1}')
    assert len(plain.sent) == 51
    assert "interrupted: 1 of 1 are published\n" in capsys.readouterr().out


def test_a_generator_that_fails(
    shell: InteractiveShell, run: Run, q: abe.SyncBackend, capsys: pytest.CaptureFixture[str]
) -> None:
    def orders() -> Iterator[dict[str, int]]:
        yield {"n": 1}
        raise OSError("the database went away")

    shell.user_ns["orders"] = orders()
    with pytest.raises(OSError, match="the database went away") as caught:
        run("%abe_publish k -i orders")
    assert caught.value.__notes__ == ["orders failed at item 1; nothing is published"]
    assert q.take(1, timeout=0) == []


def test_an_interrupt_while_everything_is_checked(
    shell: InteractiveShell, run: Run, q: abe.SyncBackend, capsys: pytest.CaptureFixture[str]
) -> None:
    def orders() -> Iterator[dict[str, int]]:
        yield {"n": 1}
        signal.raise_signal(signal.SIGINT)
        yield {"n": 2}

    shell.user_ns["orders"] = orders()
    with pytest.raises(KeyboardInterrupt):
        run("%abe_publish k -i orders")
    assert capsys.readouterr().out == "interrupted: nothing is published\nKeyboardInterrupt\n"
    assert q.take(1, timeout=0) == []
