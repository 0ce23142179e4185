"""`abe publish`: input, output and how failures are counted."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abe.backends.message_queue.base import Outgoing, encode_payload
from abe.backends.message_queue.base.outgoing import prepare
from abe.cli import publishing
from abe.cli.publishing import Publication, batches
from abe.errors import ConnectionLostError, PayloadError, PublishError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.unit_test.cli.support import Abe


class TestPublish:
    """abe publish."""

    def test_one(self, cli: Abe) -> None:
        done = cli.ok("publish", "orders.created", '{"id": 1}')
        assert done.out == "published 1 message to orders.created\n"
        assert cli.payloads() == [{"id": 1}]

    def test_list(self, cli: Abe) -> None:
        assert cli.ok("publish", "o", '[{"id": 1}, {"id": 2}]', "--json").records == [
            {"published": 2, "key": "o"}
        ]
        assert cli.payloads() == [{"id": 1}, {"id": 2}]

    def test_lines(self, cli: Abe) -> None:
        cli.ok("publish", "o", input='{"id": 1}\n\n  {"id": "ü"}  \r\n{"id": 3}')
        assert cli.payloads() == [{"id": 1}, {"id": "ü"}, {"id": 3}]

    @pytest.mark.parametrize("arguments", [["-"], ["--stream"], ["-", "--stream"]])
    def test_other_ways_to_lines(self, cli: Abe, arguments: list[str]) -> None:
        cli.ok("publish", "o", *arguments, input='{"id": 1}\n{"id": 2}\n')
        assert cli.payloads() == [{"id": 1}, {"id": 2}]

    @pytest.mark.parametrize("format", ["json", "jsonl"])
    def test_byte_order_mark(self, cli: Abe, format: str) -> None:
        cli.ok("publish", "o", "-f", format, input=b'\xef\xbb\xbf{"id": 1}\n')
        assert cli.payloads() == [{"id": 1}]

    def test_document(self, cli: Abe) -> None:
        cli.ok("publish", "o", "-f", "json", input='[\n {"id": 1},\n {"id": 2}\n]\n')
        assert cli.payloads() == [{"id": 1}, {"id": 2}]

    def test_file(self, cli: Abe, tmp_path: Path) -> None:
        path = tmp_path / "events.jsonl"
        path.write_text('{"id": 1}\n')
        cli.ok("publish", "o", "--file", str(path))
        assert cli.payloads() == [{"id": 1}]
        missing = cli("publish", "o", "-F", str(tmp_path / "nothing"))
        assert (missing.status, missing.err) == (
            1,
            f"abe: cannot read {tmp_path / 'nothing'}: No such file or directory\n",
        )

    def test_headers_and_delay(self, cli: Abe) -> None:
        cli.ok("publish", "-H", "source=cli", "--header", "a=b=c", "o", '{"id": 1}')
        (found,) = cli.ok("peek").records
        assert found["headers"] == {"source": "cli", "a": "b=c"}
        cli.ok("publish", "o", "-d", "3600", input='{"id": 2}\n{"id": 3}\n')
        assert (cli.numbers()["ready"], cli.numbers()["delayed"]) == (1, 2)

    def test_nothing(self, cli: Abe) -> None:
        assert cli.ok("publish", "o", input="\n\n").out == "published 0 messages to o\n"

    @pytest.mark.parametrize(
        ("input", "problem"),
        [
            (b'{"id": 1}\n{"id": \n', "line 2: not JSON: Expecting value at column 8"),
            (b'{"id": 1}\n\n\n[1]\n', "line 4: not a JSON object: [1]"),
            (b'{"id": 1}\n{"id": 2, "id": 3}', 'line 2: the name "id" stands twice in one object'),
            (b'{"id": 1}\n{"id": NaN}', "line 2: not JSON: NaN is not in JSON"),
            (b'{"id": "\xff"}', "line 1: not UTF-8: byte 9"),
            (b'{"id": "\\ud800"}', 'line 1: payload["id"]: lone surrogate'),
            (
                b"nonsense \x1b[31m\n",
                r"line 1: not JSON: Expecting value at column 1: nonsense \x1b[",
            ),
        ],
    )
    def test_everything_is_checked_first(self, cli: Abe, input: bytes, problem: str) -> None:
        done = cli("publish", "o", input=input)
        assert (done.status, done.out) == (1, "")
        assert done.err.startswith(f"abe: {problem}")
        assert cli.payloads() == []

    def test_stream_publishes_what_comes_before_the_bad_line(self, cli: Abe) -> None:
        done = cli("publish", "o", "--stream", input='{"id": 1}\n\n{"id": 2}\nbad\n{"id": 3}\n')
        assert done.status == 1
        assert done.err == (
            "abe: line 4: not JSON: Expecting value at column 1: bad; "
            "published 2 messages, all before it\n"
        )
        assert cli.payloads() == [{"id": 1}, {"id": 2}]

    @pytest.mark.parametrize(
        ("arguments", "status", "problem"),
        [
            (["x y", "{}"], 1, "abe: key 'x y' contains ' ', which keys and groups may not"),
            (["o", "{id: 1}"], 1, """quote it for the shell: '{"id": 1}'"""),
            (["o", '"text"'], 1, 'abe: not a JSON object and no list of them: "text"'),
            (["o", "[{}, 3]"], 1, "abe: item 1: payload must be a dict"),
            (["o", '{"id":', "1}"], 2, "PAYLOAD is one argument; quote it for the shell"),
            (["o", "{}", "-F", "x"], 2, "PAYLOAD and --file do not go together"),
            (["o", "{}", "-H", "secret"], 2, "'--header' / '-H': must look like NAME=VALUE"),
            (
                ["o", "{}", "-d", "-1"],
                2,
                "'--delay' / '-d': must be a number of seconds",
            ),
            (
                ["o", "{}", "-d", "inf"],
                2,
                "'--delay' / '-d': must be a number of seconds",
            ),
            (["o", "{}", "-b", "nope"], 1, "abe: no backend named 'nope' is installed"),
        ],
    )
    def test_refused(self, cli: Abe, arguments: list[str], status: int, problem: str) -> None:
        done = cli("publish", *arguments)
        assert (done.status, done.out) == (status, "")
        assert problem in done.err
        assert "secret" not in done.err
        assert cli.payloads() == []

    def test_terminal_is_not_read(self, cli: Abe, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("abe.cli.commands.open_input", lambda path: None)
        done = cli("publish", "o")
        assert done.status == 2
        assert "PAYLOAD is missing, and nothing comes through standard input" in done.err


class Partial:
    """A backend that accepts some of each part."""

    def __init__(self, *failures: Exception | None) -> None:
        self.failures = list(failures)
        self.sent: list[list[str]] = []

    def prepare(self, items: Any, *, label: Any, key: str, **extras: Any) -> list[Outgoing]:
        return prepare(items, key, {}, 0.0, encode=encode_payload, label=label)

    def send(self, prepared: Sequence[Outgoing]) -> None:
        self.sent.append([item.body for item in prepared])
        failure = self.failures.pop(0) if self.failures else None
        if failure is not None:
            raise failure


def follow(backend: Partial, text: bytes, **known: Any) -> None:
    """Publish lines, as from a pipe, through a backend that fails."""
    publication = Publication(backend, "o")  # type: ignore[arg-type]
    for name, value in known.items():
        setattr(publication, name, value)
    source: Any = io.BytesIO(text)
    publication.follow(source)


class TestAccount:
    """What is said when a broker refuses something."""

    LINES = b"".join(b'{"n": %d}\n' % n for n in range(1, 11))

    def test_partial_failure(self) -> None:
        failure = PublishError("some", published=[0, 1, 4], failed={2: "too big", 3: "no", 5: "no"})
        text = b'{"n": 1}\n\n{"n": 3}\n{"n": 4}\n{"n": 5}\n{"n": 6}\n{"n": 7}\n'
        with pytest.raises(PublishError) as caught:
            follow(Partial(failure), text)
        assert str(caught.value) == (
            "line 4: too big; published 3 messages; not published: lines 4-5, 7 and all after 7"
        )

    def test_end_is_known(self) -> None:
        failure = PublishError("some", published=range(4), failed=dict.fromkeys(range(4, 10), "no"))
        with pytest.raises(PublishError) as caught:
            follow(Partial(failure), self.LINES, total=10, last=10)
        assert str(caught.value) == (
            "line 5: no; published 4 of 10 messages; not published: lines 5-10"
        )

    def test_unknown_outcome(self) -> None:
        with pytest.raises(PublishError) as caught:
            follow(Partial(ConnectionLostError("gone")), self.LINES)
        assert str(caught.value) == "gone; published 0 messages, and perhaps some of lines 1-10"
        with pytest.raises(PublishError, match="perhaps some of lines 1-10"):
            follow(Partial(PublishError("who knows")), self.LINES)

    def test_refused_batch_names_the_line(self) -> None:
        with pytest.raises(PublishError) as caught:
            follow(Partial(PayloadError("item 2: too large")), b"\n" + self.LINES)
        assert str(caught.value) == "line 4: too large; published 0 messages, all before 2"

    def test_single_message_fails_as_it_is(self) -> None:
        with pytest.raises(PublishError, match=r"\Afull\Z"):
            follow(Partial(PublishError("full")), b'{"n": 1}', total=1, last=1)

    def test_memory_does_not_grow(self) -> None:
        backend = Partial()
        follow(backend, self.LINES * 5_000)
        assert sum(map(len, backend.sent)) == 50_000
        assert max(map(len, backend.sent)) <= publishing.SLICE
        assert max(sum(map(len, part)) for part in backend.sent) < 2 * publishing.CHUNK

    def test_endless_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(publishing, "MAX_LINE", 1 << 20)
        with pytest.raises(PayloadError, match="line 2 is longer than 1 MiB"):
            follow(Partial(), b'{"n": 1}\n' + b"x" * (3 << 20))


class Trickle(io.BytesIO):
    """A pipe that gives a few bytes at a time."""

    def __init__(self, text: bytes, sizes: list[int]) -> None:
        super().__init__(text)
        self.sizes = iter(sizes)

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(next(self.sizes, size))


class TestInput:
    """How bytes become lines."""

    @given(st.binary(max_size=60), st.lists(st.integers(1, 7), max_size=30))
    def test_chunks_do_not_matter(self, text: bytes, sizes: list[int]) -> None:
        source: Any = Trickle(text, sizes)
        found = [line for lines in batches(source) for line in lines]
        expected = enumerate(text.split(b"\n"), 1)
        assert found == [(number, line) for number, line in expected if line.strip()]

    def test_checked_input_is_kept_until_it_is_sent(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """In a file, where it is long."""
        monkeypatch.setattr(publishing, "SPOOL", 100)
        backend = Partial()
        publication = Publication(backend, "o")  # type: ignore[arg-type]
        texts = [f'{{"n":{n}}}' for n in range(20_000)]
        source: Any = io.BytesIO("\n\n".join(texts).encode())
        publication.send_checked(source)
        assert (publication.total, publication.last) == (20_000, 39_999)
        assert [body for part in backend.sent for body in part] == texts
        assert publication.progress == "published 20,000 of 20,000 messages"

    @given(st.sets(st.integers(1, 200), min_size=1))
    def test_spans_name_every_number(self, numbers: set[int]) -> None:
        shown = publishing._span("line", sorted(numbers))
        if "more ranges" in shown:
            return
        found: set[int] = set()
        for part in shown.removeprefix("lines ").removeprefix("line ").split(", "):
            first, _, last = part.partition("-")
            found |= set(range(int(first), int(last or first) + 1))
        assert found == numbers
