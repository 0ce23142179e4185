"""`abe new-provider`: names it accepts, and files it writes."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from abe.cli import scaffold
from abe.errors import ConfigurationError

if TYPE_CHECKING:
    from tests.conftest import FakeDistribution
    from tests.unit_test.cli.support import Abe


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
            ("class", "a Python keyword"),
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
            *(
                ".github/dependabot.yml",
                ".github/workflows/ci.yml",
                ".gitignore",
                "CHANGELOG.md",
                "LICENSE",
                "README.md",
            ),
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
