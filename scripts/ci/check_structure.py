"""Fail on import circles, long modules, misleading names and unguarded logging in the packages.

An import under ``TYPE_CHECKING`` or in a function counts as any other. Known offenders stand in
``KNOWN``, which may only shrink: one that is gone has to leave the list.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MAX_LINES = 450
MISLEADING = re.compile(
    r"_*(?:Card|Feed|Seen|HOME|(?i:outbox|homes?|places?|pace|polls|letters|sweep|trial|victim|"
    r"at_rest|leaving|stash\w*))"
)
"""Terms that mean something else in messaging, or nothing."""

LEVELS = {"debug", "info", "warning", "error", "exception", "critical", "log"}
GUARD = "abe.backends.message_queue.base.log_records"
"""The module whose functions log and never raise."""

KNOWN: set[str] = set()


def modules() -> dict[str, Path]:
    """Return the modules of abe and of the providers, by name."""
    folders = [ROOT, *sorted(ROOT.glob("providers/abe-backend-*"))]
    packages = [folder / (folder.name.replace("-", "_")) for folder in folders[1:]]
    found = {}
    for package in [ROOT / "abe", *packages]:
        for path in sorted(package.rglob("*.py")):
            parts = path.relative_to(package.parent).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(tree: ast.Module, known: dict[str, Path]) -> set[str]:
    """Return the modules that a module imports: for ``from package import name``, the one meant."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names & known.keys() or {node.module}
    return found & known.keys()


def circles(imports: dict[str, set[str]]) -> Iterator[set[str]]:
    """Yield the sets of modules that import each other, directly or through others."""
    reached: dict[str, set[str]] = {}
    for module in imports:
        new, reached[module] = set(imports[module]), set()
        while new:
            reached[module] |= new
            new = set().union(*(imports[it] for it in new)) - reached[module]
    done: set[str] = set()
    for module in imports:
        if module in reached[module] and module not in done:
            circle = {it for it in reached[module] if module in reached[it]}
            done |= circle
            yield circle


def identifiers(tree: ast.Module) -> set[str]:
    """Return the names that a module defines or uses."""
    fields = ("name", "id", "attr", "arg", "asname")
    found = (getattr(node, field, None) for node in ast.walk(tree) for field in fields)
    return {part for name in found if isinstance(name, str) for part in name.split(".")}


def logs_directly(tree: ast.Module) -> bool:
    """Whether a method of a logger is called, which raises what the application's filters raise."""
    methods = [it.func for it in ast.walk(tree) if isinstance(it, ast.Call)]
    return any(
        isinstance(it, ast.Attribute)
        and it.attr in LEVELS
        and ast.unparse(it.value).rpartition(".")[2].strip("_").startswith(("logger", "logging"))
        for it in methods
    )


def problems() -> dict[str, set[str]]:
    """Return what is wrong, and the modules it is found in."""
    known = modules()
    trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in known.items()}
    imports = {name: imported(tree, known) for name, tree in trees.items()}
    found = {f"import circle of {min(circle)}": circle for circle in circles(imports)}
    for name, path in known.items():
        count = len(path.read_text(encoding="utf-8").splitlines())
        if count > MAX_LINES:
            found[f"more than {MAX_LINES} lines in {name}"] = {f"{count}"}
        if name != GUARD and logs_directly(trees[name]):
            found.setdefault(f"logging without the functions of {GUARD}", set()).add(name)
        for word in {*identifiers(trees[name]), name.rpartition(".")[2]}:
            if MISLEADING.fullmatch(word):
                found.setdefault(f"misleading name {word.strip('_').lower()}", set()).add(name)
    return found


def main() -> int:
    """Print what is new, and what is listed and gone; return the exit status."""
    found = problems()
    for problem in sorted(found.keys() - KNOWN):
        print(f"{problem}: {', '.join(sorted(found[problem]))}")
    for problem in sorted(KNOWN - found.keys()):
        print(f"{problem}: no longer so; take it out of KNOWN in {Path(__file__).name}")
    return bool(found.keys() ^ KNOWN)


if __name__ == "__main__":
    sys.exit(main())
