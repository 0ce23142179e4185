"""The command line in this process: what each command accepts, writes and returns."""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import typer.main
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import abe
from abe._text import INVISIBLE
from abe.backends.message_queue.base import Message
from abe.backends.message_queue.base.subscription.stream import MAX_HOLD
from abe.backends.message_queue.client import AsyncBackend
from abe.cli import consuming, messages, options, output, publishing, report, scaffold, worker
from abe.cli.app import app
from abe.errors import ConfigurationError, ConnectionLostError, PayloadError, PublishError
from abe.ipython import backends as magic_backends
from abe.ipython import cleaning, grammar, looking
from abe.ipython import consuming as magic_consuming
from abe.ipython import contract as magic_contract
from abe.ipython import publishing as magic_publishing

if TYPE_CHECKING:
    from tests.conftest import FakeDistribution

_stores = itertools.count()


@dataclass
class Outcome:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def records(self) -> list[dict[str, Any]]:
        """The JSON lines on standard output."""
        return [json.loads(line) for line in self.out.splitlines()]


class Abe:
    """The command line, on a memory store of its own."""

    def __init__(self) -> None:
        self.env = {"QUEUE_BACKEND": "memory", "ABE_MEMORY_NAME": f"cli-{next(_stores)}"}

    def __call__(self, *arguments: str, input: str | bytes = b"", **env: str) -> Outcome:
        """Run a command to its end."""
        done = CliRunner(env={**self.env, **env}).invoke(app, arguments, input=input)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return Outcome(done.exit_code, done.stdout, done.stderr)

    def ok(self, *arguments: str, input: str | bytes = b"", **env: str) -> Outcome:
        """Run a command that must succeed."""
        done = self(*arguments, input=input, **env)
        assert done.status == 0, done
        return done

    def payloads(self, group: str = "") -> list[Any]:
        """What waits for a group."""
        return [it["payload"] for it in self.ok("peek", "-g", group, "-n", "1000").records]

    def numbers(self) -> dict[str, Any]:
        """The numbers of the default group's only key."""
        (entry,) = self.ok("stats", "-g", "", "--json").records
        return entry


@pytest.fixture
def cli() -> Abe:
    """The command line, on a memory store of its own."""
    return Abe()


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
            (["o", "{}", "-H", "secret"], 2, "for --header: must look like NAME=VALUE"),
            (["o", "{}", "-d", "-1"], 2, "for --delay: must be a number of seconds, 0 or more"),
            (["o", "{}", "-d", "inf"], 2, "for --delay: must be a number of seconds, 0 or more"),
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
        monkeypatch.setattr(publishing, "standard_input", lambda: None)
        done = cli("publish", "o")
        assert done.status == 2
        assert "PAYLOAD is missing, and nothing comes through standard input" in done.err


class Partial:
    """A backend that accepts some items of each batch."""

    def __init__(self, *failures: Exception | None) -> None:
        self.failures = list(failures)
        self.sent: list[list[Any]] = []

    async def publish_many(self, items: Sequence[Any], *, key: str) -> int:
        self.sent.append(list(items))
        failure = self.failures.pop(0) if self.failures else None
        if failure is not None:
            raise failure
        return len(items)

    async def publish(self, key: str, payload: Any, **extras: Any) -> None:
        await self.publish_many([payload], key=key)


def publish_through(backend: Partial, text: bytes, **what: Any) -> publishing.Publication:
    """Publish lines through a backend that fails."""
    publication = publishing.Publication("o", **what)
    source: Any = io.BytesIO(text)
    asyncio.run(publishing.publish_lines(backend, source, publication))  # type: ignore[arg-type]
    return publication


class TestAccount:
    """What is said when a broker refuses something."""

    LINES = b"".join(b'{"n": %d}\n' % n for n in range(1, 11))

    def test_partial_failure(self) -> None:
        failure = PublishError("some", published=[0, 1, 4], failed={2: "too big", 3: "no", 5: "no"})
        text = b'{"n": 1}\n\n{"n": 3}\n{"n": 4}\n{"n": 5}\n{"n": 6}\n{"n": 7}\n'
        with pytest.raises(PublishError) as caught:
            publish_through(Partial(failure), text)
        assert str(caught.value) == (
            "line 4: too big; published 3 messages; not published: lines 4-5, 7 and all after 7"
        )

    def test_end_is_known(self) -> None:
        failure = PublishError("some", published=range(4), failed=dict.fromkeys(range(4, 10), "no"))
        with pytest.raises(PublishError) as caught:
            publish_through(Partial(failure), self.LINES, total=10, last=10)
        assert str(caught.value) == (
            "line 5: no; published 4 of 10 messages; not published: lines 5-10"
        )

    def test_unknown_outcome(self) -> None:
        with pytest.raises(PublishError) as caught:
            publish_through(Partial(ConnectionLostError("gone")), self.LINES)
        assert str(caught.value) == "gone; published 0 messages, and perhaps some of lines 1-10"
        with pytest.raises(PublishError, match="perhaps some of lines 1-10"):
            publish_through(Partial(PublishError("who knows")), self.LINES)

    def test_refused_batch_names_the_line(self) -> None:
        with pytest.raises(PublishError) as caught:
            publish_through(Partial(PayloadError("item 2: too large")), b"\n" + self.LINES)
        assert str(caught.value) == "line 4: too large; published 0 messages, all before 2"

    def test_one_by_one(self) -> None:
        backend = Partial(None, None, PublishError("full"))
        with pytest.raises(PublishError) as caught:
            publish_through(backend, self.LINES, extras={"headers": {"a": "b"}})
        assert str(caught.value) == "line 3: full; published 2 messages, all before it"
        assert len(backend.sent) == 3

    def test_single_message_fails_as_it_is(self) -> None:
        with pytest.raises(PublishError, match=r"\Afull\Z"):
            publish_through(Partial(PublishError("full")), b'{"n": 1}', total=1, last=1)

    def test_memory_does_not_grow(self) -> None:
        backend = Partial()
        publish_through(backend, self.LINES * 20_000)
        assert sum(map(len, backend.sent)) == 200_000
        longest = max(len(json.dumps(batch)) for batch in backend.sent)
        assert longest < 2 * publishing.CHUNK

    def test_endless_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(publishing, "MAX_LINE", 1 << 20)
        with pytest.raises(PayloadError, match="line 2 is longer than 1 MiB"):
            publish_through(Partial(), b'{"n": 1}\n' + b"x" * (3 << 20))


class TestInput:
    """How bytes become lines."""

    @given(st.binary(max_size=60), st.lists(st.integers(1, 7), max_size=30))
    def test_chunks_do_not_matter(self, text: bytes, sizes: list[int]) -> None:
        lines = publishing.Lines()
        found, rest = [], text
        for size in sizes:
            if rest:
                found += list(lines.feed(rest[:size]))
                rest = rest[size:]
        if rest:
            found += list(lines.feed(rest))
        found += list(lines.feed(b""))
        expected = enumerate(text.split(b"\n"), 1)
        assert found == [(number, line) for number, line in expected if line.strip()]

    @pytest.mark.parametrize("seekable", [True, False])
    def test_checked_input_can_be_read_again(self, seekable: bool) -> None:
        text = b'skipped\n{"n": 1}\n\n{"n": 2}'
        source: Any = io.BytesIO(text)
        source.seek(len(b"skipped\n"))
        if not seekable:
            source = Pipe(source)
        what = publishing.Publication("o")
        with publishing.checked(source, what) as again:
            assert publishing.read_all(again) == text[len(b"skipped\n") :]
        assert (what.total, what.last) == (2, 3)

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


class Pipe:
    """A source that can be read once."""

    def __init__(self, source: io.BytesIO) -> None:
        self.source = source

    def read(self, size: int) -> bytes:
        return self.source.read(min(size, 5))

    def seek(self, offset: int, whence: int = 0) -> int:
        raise OSError("a pipe")


class TestConsume:
    """abe consume."""

    def test_json_lines(self, cli: Abe) -> None:
        cli.ok("publish", "o.a", '{"id": 1}', "-H", "a=b")
        cli.ok("publish", "o.b", '{"id": 2}')
        first, second = cli.ok("consume", "-q", "0").records
        assert tuple(first) == messages.FIELDS
        assert (first["key"], first["attempt"], first["headers"]) == ("o.a", 1, {"a": "b"})
        assert first["payload"] == {"id": 1}
        assert first["timestamp"].endswith("+00:00")
        assert second["payload"] == {"id": 2}
        assert cli.payloads() == []

    def test_number_keys_and_group(self, cli: Abe) -> None:
        for key in ("o.a", "o.b", "p.a"):
            cli.ok("publish", key, "{}")
        assert [it["key"] for it in cli.ok("consume", "o.*", "-g", "x", "-q", "0").records] == [
            "o.a",
            "o.b",
        ]
        assert [it["key"] for it in cli.ok("consume", "-g", "x", "-n", "1").records] == ["p.a"]

    def test_text(self, cli: Abe) -> None:
        cli.ok("publish", "o", '{"id": 1}', "-H", "a=b")
        done = cli.ok("consume", "--text", "-n", "1", "-g", "x")
        assert done.out.endswith('  o  {"id": 1}  (headers {"a": "b"})\n')
        assert done.err == "acked 1 message of group x\n"

    def test_nothing_comes(self, cli: Abe) -> None:
        done = cli.ok("consume", "-t", "0")
        assert (done.out, done.err) == ("", "")

    def test_a_message_is_acked_after_its_line_is_out(
        self, cli: Abe, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cli.ok("publish", "o", '[{"n": 1}, {"n": 2}, {"n": 3}]')
        acked: list[int] = []
        ack = Message.ack
        written: list[str] = []

        async def recorded_ack(self: Message) -> bool:
            acked.append(self["n"])
            return await ack(self)

        def emit(text: str) -> None:
            written.append(text)
            assert acked == [json.loads(line)["payload"]["n"] for line in written[:-1]]
            if len(written) == 2:
                raise output.OutputClosed

        monkeypatch.setattr(Message, "ack", recorded_ack)
        monkeypatch.setattr(consuming, "emit", emit)
        done = cli("consume")
        assert (done.status, done.out, done.err) == (141, "", "")
        assert acked == [1]
        assert cli.payloads() == [{"n": 2}, {"n": 3}]
        assert [it["attempt"] for it in cli.ok("peek").records] == [1, 1]

    def test_output_error(self, cli: Abe, monkeypatch: pytest.MonkeyPatch) -> None:
        cli.ok("publish", "o", '{"n": 1}')

        def full(text: str) -> None:
            raise output.OutputError("cannot write to standard output: No space left on device")

        monkeypatch.setattr(consuming, "emit", full)
        done = cli("consume")
        assert (done.status, done.err) == (
            1,
            "abe: cannot write to standard output: No space left on device\n",
        )
        assert cli.payloads() == [{"n": 1}]

    def test_slow_reader_does_not_block_the_loop(self, monkeypatch: pytest.MonkeyPatch) -> None:
        threads = []
        monkeypatch.setattr(consuming, "emit", lambda line: threads.append(_thread_name()))
        monkeypatch.setattr(consuming, "would_block", lambda size: True)

        async def main() -> None:
            async with abe.aconnect("memory", env={"ABE_MEMORY_NAME": "slow-reader"}) as q:
                await q.publish("o", {})
                wanted = consuming.Consumption((), None, 1, 1.0, 1.0, True)
                assert await consuming.consume(q, wanted) == 1

        asyncio.run(main())
        assert threads == ["abe-output-1"]

    def test_interrupt(self, cli: Abe, monkeypatch: pytest.MonkeyPatch) -> None:
        cli.ok("publish", "o", '[{"n": 1}, {"n": 2}]')

        def interrupt(text: str) -> None:
            os.kill(os.getpid(), signal.SIGINT)

        monkeypatch.setattr(consuming, "emit", interrupt)
        done = cli("consume", "-f")
        assert (done.status, done.out, done.err) == (130, "", "")

    @pytest.mark.parametrize(
        ("arguments", "status", "problem"),
        [
            (["-n", "0"], 2, "-n"),
            (["-t", "-1"], 2, "for --timeout: must be a number of seconds"),
            (["-q", "nan"], 2, "for --quiet: must be a number of seconds"),
            (["a b"], 1, "abe: key filter 'a b' is malformed"),
            (["-g", "a b"], 1, "abe: group 'a b' contains ' '"),
        ],
    )
    def test_refused(self, cli: Abe, arguments: list[str], status: int, problem: str) -> None:
        done = cli("consume", *arguments)
        assert (done.status, done.out) == (status, "")
        assert problem in done.err

    def test_unreachable_broker_is_an_error(
        self, cli: Abe, fake_distribution: FakeDistribution
    ) -> None:
        fake_distribution("gone", {"gone": "gone:Backend"}, {"gone.py": UNREACHABLE})
        for command in (["consume"], ["doctor"]):
            done = cli(*command, "-b", "gone")
            assert done.status == 1
            assert "pa55word" not in done.out + done.err
            assert "gone does not answer at redis://***@host" in done.out + done.err


def _thread_name() -> str:
    import threading

    return threading.current_thread().name


UNREACHABLE = """
import abe

class Backend:
    @classmethod
    def from_env(cls):
        return cls()

    async def publish(self, key, payload):
        raise AssertionError

    async def consume(self, *, group=None):
        raise AssertionError
        yield {}

    async def ping(self, timeout=5.0):
        raise abe.ConnectionLostError("gone does not answer at redis://user:pa55word@host")
"""


class TestLooking:
    """abe peek, stats, dead, purge, backends."""

    def test_peek_takes_nothing(self, cli: Abe) -> None:
        cli.ok("publish", "o", '[{"n": 1}, {"n": 2}]')
        for _ in range(2):
            assert [it["payload"] for it in cli.ok("peek").records] == [{"n": 1}, {"n": 2}]
        assert len(cli.ok("peek", "-n", "1").records) == 1
        assert cli.ok("peek", "p.*").out == ""

    def test_peek_as_a_table(self, cli: Abe) -> None:
        cli.ok("publish", "o", '{"text": "\\u001b[31mred\\u202e", "password": "pa55word"}')
        head, line, row = cli.ok("peek", "--text").out.splitlines()
        assert head.split() == ["id", "key", "time", "attempt", "payload"]
        assert set(line) == {"─"}
        assert row.endswith('{"text": "\\u001b[31mred\\u202e", "password": "***"}')

    def test_json_is_data_but_harmless(self, cli: Abe) -> None:
        text = "\x1b[31mred\u202e\u200b\x9b ü 😀 \U000e0041"
        cli.ok("publish", "o", json.dumps({"text": text, "password": "data"}))
        done = cli.ok("peek", "--json")
        assert done.records[0]["payload"] == {"text": text, "password": "data"}
        assert not INVISIBLE.search(done.out.rstrip("\n"))
        assert "ü 😀" in done.out

    def test_stats(self, cli: Abe) -> None:
        cli.ok("publish", "o.a", '[{"n": 1}, {"n": 2}]')
        cli.ok("publish", "p", "{}")
        cli.ok("consume", "-g", "x", "-n", "1")
        found = cli.ok("stats", "-g", "x", "o.*", "--json").records
        assert [
            {name: it[name] for name in ("key", "group", "ready", "in_flight", "dead")}
            for it in found
        ] == [{"key": "o.a", "group": "x", "ready": 1, "in_flight": 0, "dead": 0}]
        assert set(found[0]) == {
            *("key", "group", "ready", "in_flight", "delayed", "dead", "oldest_age", "approximate")
        }
        head, _, *rows = cli.ok("stats").out.splitlines()
        assert head.split() == [
            "key",
            "group",
            "ready",
            "in",
            "flight",
            "delayed",
            "dead",
            "oldest",
        ]
        assert [row.split()[:3] for row in rows] == [["o.a", "x", "1"], ["p", "x", "1"]]

    def test_nothing_waits(self, cli: Abe) -> None:
        assert cli.ok("stats").out == "nothing is waiting\n"
        assert cli.ok("stats", "--json").out == ""

    def test_dead_letters(self, cli: Abe) -> None:
        cli.ok("publish", "o", '[{"n": 1}, {"n": 2}]')

        async def fail() -> None:
            async with abe.aconnect("memory", env=cli.env) as q, q.consume(group="x") as stream:
                for message in await stream.take(2, 1.0):
                    await message.reject("no such customer")

        asyncio.run(fail())
        first, second = cli.ok("dead", "-g", "x").records
        assert first["headers"]["abe-dead-reason"] == "no such customer"
        table = cli.ok("dead", "list", "-g", "x", "--text").out
        assert table.count("no such customer") == 2
        assert cli.ok("dead", "replay", "-g", "x", "--id", second["id"]).out == (
            "put 1 message back for group x\n"
        )
        assert cli.payloads("x") == [{"n": 2}]
        assert cli.ok("dead", "replay", "-g", "x", "--json").records == [
            {"replayed": 1, "group": "x"}
        ]
        assert cli.ok("dead", "-g", "x").out == ""

    def test_ids_are_for_replay(self, cli: Abe) -> None:
        done = cli("dead", "--id", "x")
        assert done.status == 2
        assert "--id is for 'abe dead replay'" in done.err

    def test_purge(self, cli: Abe) -> None:
        cli.ok("publish", "o.a", "{}")
        cli.ok("publish", "p", "{}")
        refused = cli("purge")
        assert refused.status == 2
        assert "add --yes" in refused.err
        assert cli.ok("purge", "o.*", "--yes").out == "dropped 1 message of the default group\n"
        assert cli.ok("purge", "--yes", "--json").records == [{"purged": 1, "group": None}]
        assert cli.payloads() == []

    def test_backends(self, cli: Abe) -> None:
        done = cli.ok("backends")
        assert [
            line.split()[0] for line in done.out.splitlines() if "abstract-backend" in line
        ] == [
            "memory",
            "sqlite",
        ]
        assert done.out.endswith("without a name memory is taken: named by QUEUE_BACKEND\n")
        found = {it["name"]: it for it in cli.ok("backends", "--json", "--check").records}
        assert found["memory"]["chosen"]
        assert found["memory"]["builtin"]
        assert found["sqlite"]["status"] == "loaded"

    def test_broken_backends(self, cli: Abe, fake_distribution: FakeDistribution) -> None:
        fake_distribution("bad", {"bad": "bad:Backend"}, {"bad.py": "1 / 0"})
        assert "ZeroDivisionError" not in cli.ok("backends").out
        done = cli.ok("backends", "--check")
        assert "broken" in done.out
        assert "ZeroDivisionError" in done.out
        assert cli("stats", "-b", "bad").status == 1

    def test_unsupported(self, cli: Abe, fake_distribution: FakeDistribution) -> None:
        fake_distribution("gone", {"gone": "gone:Backend"}, {"gone.py": UNREACHABLE})
        done = cli("peek", "-b", "gone")
        assert (done.status, done.out) == (1, "")
        assert done.err == "abe: backend 'Backend' does not support peek() (capability 'peek')\n"


class TestDoctor:
    """abe doctor."""

    def test_well(self, cli: Abe) -> None:
        done = cli.ok("doctor")
        rows = {line.split()[0]: line for line in done.out.splitlines()}
        assert sys.executable in rows["python"]
        assert abe.__version__ in rows["abe"]
        assert rows["selected"].endswith("memory (named by QUEUE_BACKEND)")
        assert "yes, in " in rows["answers"]

    def test_json(self, cli: Abe) -> None:
        (found,) = cli.ok("doctor", "-b", "memory", "--json").records
        assert found["ok"]
        assert (found["backend"], found["reason"]) == ("memory", "named by the caller")
        assert {it["name"] for it in found["backends"]} >= {"memory", "sqlite"}

    @pytest.mark.parametrize(
        ("env", "problem"),
        [
            ({"QUEUE_BACKEND": "nope"}, "no backend named 'nope' is installed"),
            ({"ABE_MEMORY_MAXSIZE": "many"}, "ABE_MEMORY_MAXSIZE is 'many'"),
        ],
    )
    def test_ill(self, cli: Abe, env: dict[str, str], problem: str) -> None:
        done = cli("doctor", **env)
        assert done.status == 1
        assert problem in done.out

    def test_unreachable_file(self, cli: Abe, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        done = cli("doctor", "-b", "sqlite", "-e", f"ABE_SQLITE_PATH={tmp_path}/file/x.sqlite3")
        assert done.status == 1
        assert "problem" in done.out

    def test_no_ping(self, cli: Abe, fake_distribution: FakeDistribution) -> None:
        source = UNREACHABLE.partition("    async def ping")[0]
        fake_distribution("plain", {"plain": "plain:Backend"}, {"plain.py": source})
        assert "unknown: the backend has no ping()" in cli.ok("doctor", "-b", "plain").out

    def test_foreign_error(self, cli: Abe, fake_distribution: FakeDistribution) -> None:
        source = UNREACHABLE.replace("abe.ConnectionLostError", "OSError")
        fake_distribution("odd", {"odd": "odd:Backend"}, {"odd.py": source})
        done = cli("doctor", "-b", "odd")
        assert done.status == 1
        assert "OSError: gone does not answer at redis://***@host" in done.out


@pytest.mark.usefixtures("no_providers")
def test_choice_of_memory_is_warned_of(cli: Abe) -> None:
    done = cli.ok("publish", "o", "{}", QUEUE_BACKEND="")
    assert done.err.startswith(
        "abe: warning: QUEUE_BACKEND is not set and no provider is installed"
    )


class TestSecrets:
    """They appear in nothing that is shown."""

    def test_in_errors(self, cli: Abe, fake_distribution: FakeDistribution) -> None:
        source = UNREACHABLE.replace(
            "return cls()",
            "import os; raise abe.ConfigurationError('bad: ' + os.environ['ABE_X_URL']"
            " + ' ' + os.environ['ABE_X_TOKEN'])",
        )
        fake_distribution("leaky", {"leaky": "leaky:Backend"}, {"leaky.py": source})
        done = cli(
            *("stats", "-b", "leaky", "-e", "ABE_X_URL=redis://u:pa55word@host/0"),
            *("-e", "ABE_X_TOKEN=t0ken-value"),
        )
        assert (done.status, done.err) == (1, "abe: bad: redis://***@host/0 ***\n")

    @pytest.mark.parametrize("value", ["NOT A NAME", "1=x", "=x"])
    def test_malformed_env_is_not_echoed(self, cli: Abe, value: str) -> None:
        done = cli("stats", "-e", value)
        assert done.status == 2
        assert "must look like NAME=VALUE" in done.err
        assert "NOT A NAME" not in done.err

    def test_value_is_asked_for(self, cli: Abe, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = []

        def getpass(prompt: str) -> str:
            asked.append(prompt)
            return "asked-store"

        monkeypatch.setattr("getpass.getpass", getpass)
        cli.ok("publish", "o", "{}", "-e", "ABE_MEMORY_NAME")
        assert asked == ["ABE_MEMORY_NAME: "]
        assert len(cli.ok("peek", "-e", "ABE_MEMORY_NAME=asked-store").records) == 1

    def test_nobody_can_be_asked(self, cli: Abe, monkeypatch: pytest.MonkeyPatch) -> None:
        def getpass(prompt: str) -> str:
            raise EOFError

        monkeypatch.setattr("getpass.getpass", getpass)
        done = cli("stats", "-e", "ABE_X_TOKEN")
        assert (done.status, done.err) == (
            1,
            "abe: --env ABE_X_TOKEN asks for the value, and nobody can be asked here; "
            "set ABE_X_TOKEN in the environment\n",
        )

    def test_escapes_in_errors(self, capsys: pytest.CaptureFixture[str]) -> None:
        report.report("first\nsecond \x1b[31m")
        assert capsys.readouterr().err == "abe: first second \\x1b[31m\n"


class TestApplication:
    """What all commands share."""

    COMMANDS: ClassVar[Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]

    def test_version_and_help(self, cli: Abe) -> None:
        assert cli.ok("--version").out == f"abe {abe.__version__}\n"
        shown = cli.ok("--help").out
        for name in self.COMMANDS:
            assert f"\n  {name} " in shown
        assert "..." not in shown.partition("Commands:")[2]

    @pytest.mark.parametrize("name", COMMANDS)
    def test_every_option_says_what_it_does(self, cli: Abe, name: str) -> None:
        assert cli.ok(name, "-h").out.startswith(f"Usage: abe {name} ")
        for parameter in self.COMMANDS[name].params:
            assert parameter.name == "help" or parameter.help

    def test_nobody_reads_the_version(self, cli: Abe, monkeypatch: pytest.MonkeyPatch) -> None:
        def closed(text: str) -> None:
            raise output.OutputClosed

        monkeypatch.setattr("abe.cli.app.emit_line", closed)
        done = cli("--version")
        assert (done.status, done.out, done.err) == (141, "", "")

    def test_usage_is_readable(self, cli: Abe) -> None:
        for name in self.COMMANDS:
            assert "[[" not in cli.ok(name, "-h").out

    def test_unknown_command(self, cli: Abe) -> None:
        done = cli("publishh")
        assert done.status == 2
        assert "'publish'" in done.err

    @pytest.mark.parametrize(
        ("command", "syntax"),
        [
            ("publish", magic_publishing.LINE),
            ("consume", magic_consuming.CONSUME),
            ("peek", looking.PEEK),
            ("stats", looking.STATS),
            ("dead", cleaning.DEAD),
            ("purge", cleaning.PURGE),
            ("backends", magic_backends.BACKENDS),
            ("doctor", magic_backends.CONNECT),
            ("contract", magic_contract.CONTRACT),
        ],
    )
    def test_options_are_those_of_the_magic(self, command: str, syntax: grammar.Syntax) -> None:
        known = {spelling for it in self.COMMANDS[command].params for spelling in it.opts}
        for option in syntax.options:
            if option.long in ("--out", "--in"):  # variables, which a shell does not have
                continue
            assert option.long in known
            assert not option.short or option.short in known

    def test_backend_names_complete(self) -> None:
        assert {"memory", "sqlite"} <= set(options._backend_names())


class TestContract:
    """abe contract."""

    def test_passes(self, cli: Abe) -> None:
        done = cli.ok("contract", "memory", "-s", "*payload*")
        *rows, _, summary = done.out.splitlines()
        assert rows
        assert all(row.startswith(("pass  ", "skip  ")) for row in rows)
        assert summary.startswith("memory: ")
        assert "0 failed" in summary

    def test_json(self, cli: Abe) -> None:
        found = cli.ok("contract", "memory", "-s", "nack_red", "--select", "break_*", "--json")
        members = {"case", "obligation", "outcome", "reason", "seconds"}
        assert [set(it) for it in found.records] == [members, members]
        assert {it["case"] for it in found.records} == {"nack_redelivers", "break_redelivers"}

    def test_fails(self, cli: Abe, fake_distribution: FakeDistribution) -> None:
        source = UNREACHABLE.replace("raise AssertionError\n        yield", "yield")
        source = source.replace("raise AssertionError", "pass").partition("    async def ping")[0]
        fake_distribution("lossy", {"lossy": "lossy:Backend"}, {"lossy.py": source})
        done = cli("contract", "lossy", "-s", "payloads_arrive_exactly")
        assert done.status == 1
        assert "1 failed" in done.out

    def test_unknown(self, cli: Abe) -> None:
        assert cli("contract", "nope").status == 1
        done = cli("contract", "memory", "-s", "no such case")
        assert done.status == 1
        assert "matches no case" in done.err

    def test_silent_broker(self, cli: Abe, fake_distribution: FakeDistribution) -> None:
        fake_distribution("gone", {"gone": "gone:Backend"}, {"gone.py": UNREACHABLE})
        done = cli("contract", "gone")
        assert (done.status, done.out) == (1, "")
        assert done.err == "abe: gone does not answer at redis://***@host\n"

    def test_module_of_the_working_directory(
        self, cli: Abe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        text = "from tests.selftest.variants import PlainBackend\nnumber = 3\n"
        (tmp_path / "shop_contract.py").write_text(text)
        (tmp_path / "shop_faulty.py").write_text("1 / 0\n")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", [it for it in sys.path if it not in ("", str(tmp_path))])
        monkeypatch.delitem(sys.modules, "shop_contract", raising=False)
        cli.ok("contract", "shop_contract:PlainBackend", "-s", "what_is_published")
        for name, problem in (
            ("shop_contract:number", "shop_contract:number: cannot test 3: give a backend's name"),
            ("shop_contract:nothing", "module 'shop_contract' has no attribute 'nothing'"),
            ("shop_faulty:x", "'shop_faulty:x' cannot be imported: ZeroDivisionError: division"),
        ):
            done = cli("contract", name)
            assert (done.status, done.out) == (1, "")
            assert problem in done.err


HANDLERS = """
import abe

async def handle(message): ...
def plain(message): ...

class Audit:
    async def handle_event(self, event): ...

class Container:
    audit = Audit()

audit = Audit()
container = Container()
number = 3

def yields(message):
    yield

def nothing(): ...
"""


class TestHandler:
    """MODULE:HANDLER."""

    @pytest.fixture(autouse=True)
    def _modules(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        (tmp_path / "shop_handlers.py").write_text(HANDLERS)
        (tmp_path / "shop_missing.py").write_text("\nimport no_such_module_at_all\n")
        (tmp_path / "shop_syntax.py").write_text("x = (\n")
        (tmp_path / "shop_raises.py").write_text("def f():\n    return 1 / 0\nf()\n")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", sys.path[:])
        yield
        for name in [it for it in sys.modules if it.startswith("shop_")]:
            del sys.modules[name]

    @pytest.mark.parametrize("path", ["handle", "plain", "audit", "container.audit"])
    def test_found_in_the_working_directory(self, path: str) -> None:
        assert callable(worker.load_handler(f"shop_handlers:{path}")) or path.endswith("audit")

    @pytest.mark.parametrize(
        ("name", "problem"),
        [
            ("shop_handlers", "'shop_handlers' must look like MODULE:HANDLER"),
            (":handle", "':handle' must look like MODULE:HANDLER"),
            ("shop_handlers:handl", "shop_handlers has no 'handl'; did you mean 'handle'?"),
            ("shop_handlers:container.x", "shop_handlers:container has no 'x'"),
            ("shop_handlers:Audit", "shop_handlers:Audit is the class Audit; give an instance"),
            ("shop_handlers:yields", "shop_handlers:yields contains 'yield'"),
            ("shop_handlers:number", "shop_handlers:number is int; it must be a function"),
            ("shop_handlers:nothing", "shop_handlers:nothing is called with one argument, the"),
            ("shop_handlers.x:y", "no module 'shop_handlers.x' is installed or in "),
            ("shop_nothing.x:y", "no module 'shop_nothing' is installed or in "),
        ],
    )
    def test_wrong(self, cli: Abe, name: str, problem: str) -> None:
        done = cli("run", name)
        assert done.status == 2
        assert f"Error: {problem}" in done.err

    @pytest.mark.parametrize(
        ("module", "problem", "line"),
        [
            ("shop_missing", "ModuleNotFoundError: No module named 'no_such_module_at_all'", 2),
            ("shop_syntax", "SyntaxError: '(' was never closed", 1),
            ("shop_raises", "ZeroDivisionError: division by zero", 2),
        ],
    )
    def test_import_fails(self, cli: Abe, module: str, problem: str, line: int) -> None:
        done = cli("run", f"{module}:handle")
        assert done.status == 1
        assert done.err.startswith(f"abe: importing {module} failed: {problem} (")
        assert done.err.endswith(f"{module}.py:{line})\n")
        assert done.err.count("\n") == 1

    @pytest.mark.parametrize(
        ("arguments", "status", "problem"),
        [
            (
                ["--log-level", "LOUD"],
                2,
                "for --log-level: 'LOUD' is not a log level; there are DEBUG",
            ),
            (["-c", "0"], 2, "--concurrency"),
            (["--drain-timeout", "-1"], 2, "for --drain-timeout: must be a number of seconds"),
            (["--health-file", "nowhere/file"], 1, "there is no folder nowhere"),
            (["--dead-letter-key", "a b"], 1, "abe: key 'a b' contains ' '"),
            (["-k", "a b"], 1, "abe: key filter 'a b' is malformed"),
            (["-g", "", "-k", "a b"], 1, "abe: key filter 'a b' is malformed"),
            (["-b", "nope"], 1, "abe: no backend named 'nope' is installed"),
        ],
    )
    def test_refused(self, cli: Abe, arguments: list[str], status: int, problem: str) -> None:
        try:
            done = cli("run", "shop_handlers:handle", *arguments)
        finally:
            abe_logging_reset()
        assert done.status == status
        assert problem in done.err


def abe_logging_reset() -> None:
    """Undo what abe run has set up."""
    from abe.logging import reset_logging

    reset_logging()


class TestStop:
    """What signals do to a worker."""

    def test_escalation(self, monkeypatch: pytest.MonkeyPatch) -> None:
        told: list[str] = []
        monkeypatch.setattr(worker, "_exit_soon", lambda status: told.append(f"soon {status}"))
        monkeypatch.setattr("os._exit", lambda status: told.append(f"exit {status}"))
        stop = worker.Stop(
            on_first=lambda: told.append("drain"), on_second=lambda: told.append("cancel")
        )
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGINT):
            stop(signum, None)
        assert told == ["drain", "soon 130", "cancel", "exit 130"]


class FakeConsumer:
    """Counters, as a consumer has them."""

    concurrency = 2
    retried = dead = 0

    def __init__(self) -> None:
        self.processed = self.failed = self.in_flight = 0


class TestHealth:
    """--health-file."""

    def test_stalled_only_if_all_are_busy_for_too_long(self) -> None:
        consumer: Any = FakeConsumer()
        backend: Any = None
        health = worker.Health(backend, consumer, None)
        consumer.in_flight = 2
        assert not health._stalled(0.0)
        assert not health._stalled(MAX_HOLD)
        assert health._stalled(MAX_HOLD + 1)
        consumer.processed = 1
        assert not health._stalled(MAX_HOLD + 2)
        assert health._stalled(2 * MAX_HOLD + 3)
        consumer.in_flight = 1
        assert not health._stalled(3 * MAX_HOLD)

    def test_file_is_renewed_while_the_broker_answers(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = tmp_path / "health"
        path.write_text("of an earlier worker")
        answers = asyncio.Event()
        pinged = asyncio.Event()
        monkeypatch.setattr(worker, "HEALTH_INTERVAL", 0.0)

        class Backend:
            async def ping(self, timeout: float = 5.0) -> None:
                pinged.set()
                if not answers.is_set():
                    raise ConnectionLostError("gone")

        async def main() -> None:
            consumer: Any = FakeConsumer()
            plain: Any = Backend()
            health = worker.Health(AsyncBackend(plain), consumer, path)
            health.start()
            await pinged.wait()
            assert not path.exists()
            answers.set()
            pinged.clear()
            await pinged.wait()
            await asyncio.sleep(0)
            assert json.loads(path.read_text())["processed"] == 0
            await health.stop()

        asyncio.run(main())
        assert list(tmp_path.iterdir()) == []
        assert caplog.text.count("unhealthy: gone") == 1


class TestNames:
    """What a new provider may be called."""

    @pytest.mark.parametrize(
        ("name", "spelled"),
        [("nats", "nats"), ("my-nats", "my-nats"), ("my_nats", "my-nats"), ("v2ray", "v2ray")],
    )
    def test_good(self, name: str, spelled: str) -> None:
        assert scaffold.check_name(name) == spelled

    @pytest.mark.parametrize(
        ("name", "problem"),
        [
            ("", "cannot be the name of a provider"),
            ("Nats", "how about 'nats'?"),
            ("2nats", "cannot be the name of a provider"),
            ("my nats", "cannot be the name of a provider"),
            ("my--nats", "cannot be the name of a provider"),
            ("my-", "cannot be the name of a provider"),
            ("../nats", "cannot be the name of a provider"),
            ("nats\n", "cannot be the name of a provider"),
            ("nаts", "cannot be the name of a provider"),
            ("x" * 31, "up to 30 lower-case letters"),
            ("class", "a word of Python's own"),
            ("redis", "is reserved: it is the name of a first-party provider"),
            ("base", "is reserved"),
            ("testbus", "is reserved: pytest would take its class for tests"),
            ("memory", "is taken: abstract-backend is installed"),
            ("sqlite", "is taken"),
            ("abe-backend-nats", "give the name alone: 'nats'"),
            ("abe_backend_nats", "give the name alone: 'nats'"),
        ],
    )
    def test_bad(self, cli: Abe, tmp_path: Path, name: str, problem: str) -> None:
        done = cli("new-provider", "-o", str(tmp_path), "--", name)
        assert done.status == 1
        assert problem in done.err
        assert list(tmp_path.iterdir()) == []

    def test_installed_providers_are_not_shadowed(
        self, fake_distribution: FakeDistribution
    ) -> None:
        fake_distribution("abe-backend-x", {"my_nats": "x:Backend"})
        with pytest.raises(ConfigurationError, match="is taken: abe-backend-x is installed"):
            scaffold.check_name("my-nats")


class TestScaffold:
    """abe new-provider."""

    def test_creates_a_project(self, cli: Abe, tmp_path: Path) -> None:
        done = cli.ok("new-provider", "my_nats", "--output", str(tmp_path / "new"))
        folder = tmp_path / "new" / "abe-backend-my-nats"
        assert done.out.startswith(f"created {folder}\n")
        files = {
            path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
        }
        assert files == {
            *(".github/workflows/ci.yml", ".gitignore", "CHANGELOG.md", "LICENSE", "README.md"),
            *("abe_backend_my_nats/__init__.py", "abe_backend_my_nats/backend.py"),
            *("abe_backend_my_nats/py.typed", "abe_backend_my_nats/transport.py"),
            *("pyproject.toml", "tests/test_backend.py", "tests/test_contract.py"),
            "tests/test_typing.py",
        }
        for path in folder.rglob("*"):
            if path.is_file():
                text = path.read_text(encoding="utf-8")
                assert "{{" not in text.replace("${{", "")
                assert "TODO" not in text

    def test_overwrites_nothing(self, cli: Abe, tmp_path: Path) -> None:
        folder = tmp_path / "abe-backend-nats"
        folder.mkdir()
        done = cli("new-provider", "nats", "-o", str(tmp_path))
        assert (done.status, done.err) == (
            1,
            f"abe: {folder} exists already; nothing was changed\n",
        )
        assert list(folder.iterdir()) == []

    def test_leaves_nothing_half_done(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write = Path.write_text
        count = itertools.count(1)

        def full(self: Path, *args: Any, **options: Any) -> int:
            if next(count) == 5:
                raise OSError(28, "No space left on device")
            return write(self, *args, **options)

        monkeypatch.setattr(Path, "write_text", full)
        with pytest.raises(ConfigurationError, match="No space left on device"):
            scaffold.create("nats", tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_output_is_a_file(self, cli: Abe, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        done = cli("new-provider", "nats", "-o", str(tmp_path / "file"))
        assert done.status == 1
        assert "exists already; nothing was changed" in done.err


class TestOutput:
    """Standard output."""

    @given(st.text())
    def test_json_line_is_one_harmless_line(self, text: str) -> None:
        line = output.json_line({text: [text]})
        assert json.loads(line) == {text: [text]}
        assert not INVISIBLE.search(line)

    def test_terminal_gets_text(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "stdout", Terminal())
        assert output.writes_to_terminal()
        assert not options.as_lines(None)
        assert options.as_lines(True)

    def test_closed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "stdout", None)
        with pytest.raises(output.OutputError, match="standard output is closed"):
            output.emit("x")
        assert output.would_block(1)


class Terminal(io.StringIO):
    """What a person looks at."""

    def isatty(self) -> bool:
        return True
