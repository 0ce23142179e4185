"""The versions that the project pins can be installed on every Python that it accepts."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[2]


def test_what_is_installed_accepts_the_oldest_python() -> None:
    """Debian and others stay with the micro version of their release, such as 3.11.2."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    oldest = project["requires-python"].removeprefix(">=") + ".0"
    pins = re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "constraints.txt").read_text("utf-8"), re.M)
    wanted = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pins}
    needs = {
        f"{name} {found.version}": "".join(found.metadata.get_all("Requires-Python") or [])
        for found in metadata.distributions()
        if wanted.get(name := re.sub(r"[-_.]+", "-", found.name).lower()) == found.version
    }
    assert len(needs) > 20
    refusing = {name: text for name, text in needs.items() if oldest not in SpecifierSet(text)}
    assert refusing == {}
