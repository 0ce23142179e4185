"""Standard output, and secrets in it."""

from __future__ import annotations

import io
import json
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abe.cli import options, output
from abe.display.lines import json_line
from abe.display.text import INVISIBLE
from tests.unit_test.cli.support import UNREACHABLE, Abe

if TYPE_CHECKING:
    from tests.conftest import FakeDistribution


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
            "abe: --env ABE_X_TOKEN asks for the value, but no input is available here; "
            "set ABE_X_TOKEN in the environment\n",
        )

    def test_escapes_in_errors(self, capsys: pytest.CaptureFixture[str]) -> None:
        output.say("abe: first\nsecond \x1b[31m")
        assert capsys.readouterr().err == "abe: first second \\x1b[31m\n"


class TestOutput:
    """Standard output."""

    @given(st.text())
    def test_json_line_is_one_harmless_line(self, text: str) -> None:
        line = json_line({text: [text]})
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


class Terminal(io.StringIO):
    """What a person looks at."""

    def isatty(self) -> bool:
        return True
