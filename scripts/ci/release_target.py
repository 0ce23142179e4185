"""Say which distribution a tag releases, or with --providers where the providers are.

Prints ``name=value`` lines, the form in which a workflow step passes on what it found.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TAG = re.compile(
    r"(?:(?P<provider>abe-backend-[a-z0-9-]+)-)?v(?P<version>\d+(?:\.\d+)*(?:(?:a|b|rc)\d+)?)"
)


def providers(root: Path = ROOT) -> list[str]:
    """Return the folders of the providers, relative to the project."""
    files = sorted(root.glob("providers/*/pyproject.toml"))
    return [path.parent.relative_to(root).as_posix() for path in files]


def target(tag: str, root: Path = ROOT) -> dict[str, str]:
    """Return name, folder and version of what a tag releases.

    Raises:
        ValueError: If it names nothing that can be released.
    """
    match = TAG.fullmatch(tag)
    if match is None:
        raise ValueError(f"{tag!r} is neither v<version> nor abe-backend-<name>-v<version>")
    provider, version = match["provider"], match["version"]
    folder = f"providers/{provider}" if provider else "."
    if provider and folder not in providers(root):
        raise ValueError(f"{tag!r}: there is no {folder}")
    changelog = (root / folder / "CHANGELOG.md").read_text(encoding="utf-8")
    if f"## [{version}]" not in changelog:
        raise ValueError(f"{tag!r}: {folder}/CHANGELOG.md has no section '## [{version}]'")
    return {"name": provider or "abstract-backend", "folder": folder, "version": version}


def main(argument: str) -> None:
    """Print what was asked for."""
    if argument == "--providers":
        print(f"folders={json.dumps(providers())}")
        return
    try:
        found = target(argument)
    except ValueError as error:
        sys.exit(str(error))
    print(*(f"{name}={value}" for name, value in found.items()), sep="\n")


if __name__ == "__main__":
    main(sys.argv[1])
