"""`abe consume`."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING

import pytest

from abe.backends.message_queue.base import SyncMessage
from abe.cli import commands, output
from abe.display.lines import FIELDS
from tests.unit_test.cli.support import UNREACHABLE, Abe

if TYPE_CHECKING:
    from tests.conftest import FakeDistribution


class TestConsume:
    """abe consume."""

    def test_json_lines(self, cli: Abe) -> None:
        cli.ok("publish", "o.a", '{"id": 1}', "-H", "a=b")
        cli.ok("publish", "o.b", '{"id": 2}')
        first, second = cli.ok("consume", "-q", "0").records
        assert tuple(first) == FIELDS
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
        events: list[str] = []
        ack = SyncMessage.ack

        def recorded_ack(self: SyncMessage) -> bool:
            events.append(f"acked {self['n']}")
            return ack(self)

        def emit(text: str) -> None:
            events.append(f"wrote {json.loads(text)['payload']['n']}")
            if len(events) == 3:
                raise output.OutputClosed

        monkeypatch.setattr(SyncMessage, "ack", recorded_ack)
        monkeypatch.setattr(commands, "emit", emit)
        done = cli("consume")
        assert (done.status, done.out, done.err) == (141, "", "")
        assert events == ["wrote 1", "acked 1", "wrote 2"]
        assert cli.payloads() == [{"n": 2}, {"n": 3}]
        assert [it["attempt"] for it in cli.ok("peek").records] == [1, 1]

    def test_output_error(self, cli: Abe, monkeypatch: pytest.MonkeyPatch) -> None:
        cli.ok("publish", "o", '{"n": 1}')

        def full(text: str) -> None:
            raise output.OutputError("cannot write to standard output: No space left on device")

        monkeypatch.setattr(commands, "emit", full)
        done = cli("consume")
        assert (done.status, done.err) == (
            1,
            "abe: cannot write to standard output: No space left on device\n",
        )
        assert cli.payloads() == [{"n": 1}]

    def test_interrupt(self, cli: Abe, monkeypatch: pytest.MonkeyPatch) -> None:
        cli.ok("publish", "o", '[{"n": 1}, {"n": 2}]')

        def interrupt(text: str) -> None:
            os.kill(os.getpid(), signal.SIGINT)

        monkeypatch.setattr(commands, "emit", interrupt)
        done = cli("consume", "-f")
        assert (done.status, done.out, done.err) == (130, "", "")

    @pytest.mark.parametrize(
        ("arguments", "status", "problem"),
        [
            (["-n", "0"], 2, "-n"),
            (["-t", "-1"], 2, "'--timeout' / '-t': must be a number of seconds"),
            (["-q", "nan"], 2, "'--quiet' / '-q': must be a number of seconds"),
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
