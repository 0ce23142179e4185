"""`abe contract`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from tests.unit_test.cli.support import UNREACHABLE, Abe

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from tests.conftest import FakeDistribution


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
