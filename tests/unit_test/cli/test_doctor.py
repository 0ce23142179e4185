"""`abe doctor`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

import abe
from tests.unit_test.cli.support import UNREACHABLE, Abe

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import FakeDistribution


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
