"""The import rules in pyproject.toml hold for every provider of the repository."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def test_every_provider_is_covered() -> None:
    files = ROOT.glob("providers/*/pyproject.toml")
    packages = sorted(path.parent.name.replace("-", "_") for path in files)
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    rules: dict[str, Any] = tomllib.loads(text)["tool"]["importlinter"]
    contracts = {contract["id"]: contract for contract in rules["contracts"]}
    assert packages
    assert rules["root_packages"] == ["abe", *packages]
    assert contracts["providers"]["layers"] == [" | ".join(packages), "abe"]
    assert contracts["provider-imports"]["source_modules"] == packages
    allowed = contracts["logging"]["allowed_importers"]
    assert {name for name in allowed if not name.startswith("abe.")} == {
        f"{package}.**" for package in packages
    }
