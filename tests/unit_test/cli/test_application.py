"""Options of every command, help and errors."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import typer.main

import abe
from abe.cli import options, output
from abe.cli.app import app
from abe.ipython.magics import AbeMagics
from tests.unit_test.cli.support import Abe


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
        ("command", "magic"),
        [
            ("publish", "%abe_publish"),
            ("consume", "%abe_consume"),
            ("peek", "%abe_peek"),
            ("stats", "%abe_stats"),
            ("dead", "%abe_dead"),
            ("purge", "%abe_purge"),
            ("backends", "%abe_backends"),
            ("doctor", "%abe_connect"),
            ("contract", "%abe_contract"),
        ],
    )
    def test_options_are_those_of_the_magic(self, command: str, magic: str) -> None:
        known = {spelling for it in self.COMMANDS[command].params for spelling in it.opts}
        for option in AbeMagics.syntaxes[magic].options:
            if option.long in ("--out", "--in"):  # variables, which a shell does not have
                continue
            assert option.long in known
            assert not option.short or option.short in known

    def test_backend_names_complete(self) -> None:
        assert {"memory", "sqlite"} <= set(options._backend_names())

    def test_variables_complete(self) -> None:
        found = options._variable_names(typer.Context(self.COMMANDS["peek"]), "ABE_SQLITE_P")
        assert found == ["ABE_SQLITE_PATH="]
