"""Fail where pages written by hand differ from the code: variables, errors, figures, results."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import abe
from abe import errors
from abe.backends.message_queue.base import BaseBackend, Subscription
from abe.backends.message_queue.base.subscription import (
    leases,
    ledger,
    prefetch,
    reconnect,
    subscription,
)
from abe.backends.message_queue.loader import settings_of
from abe.backends.message_queue.service.memory import MemoryBackend
from abe.errors import AbeError
from abe.testing import list_cases
from abe.testing.requirements import unmet

ROOT = Path(__file__).resolve().parents[2]
TEST_VARIABLE = re.compile(r"\bABE_TEST_[A-Z0-9_]+[A-Z0-9]\b")
TABLES = {
    "memory": "docs/how-to/memory.md",
    "sqlite": "docs/how-to/sqlite.md",
    "redis": "providers/abe-backend-redis/README.md",
    "sqs": "providers/abe-backend-sqs/README.md",
}
SNIPPET = re.compile(r'^--8<-- "(.+):(\w+)"$', re.MULTILINE)


def page(name: str) -> str:
    """Return a page, with the sections of other files that it includes."""

    def section(snippet: re.Match[str]) -> str:
        text = (ROOT / snippet[1]).read_text(encoding="utf-8")
        return text.partition(f"[start:{snippet[2]}]")[2].partition(f"[end:{snippet[2]}]")[0]

    return SNIPPET.sub(section, (ROOT / "docs" / name).read_text(encoding="utf-8"))


def table(name: str) -> str:
    """Return the table of a backend's variables, from its settings."""
    rows = ["| variable | default | meaning | sample |", "|---|---|---|---|"]
    for it in settings_of(name):
        value = f"{it.default:g}" if isinstance(it.default, float) else it.default
        plain = "off" if value is False else "none" if value is None else f"`{value}`"
        unit = f"; {it.form.partition(', ')[2].replace(' s', ' seconds')}" if it.unit == "s" else ""
        sample = f" `{it.sample}`" if it.sample else ""
        rows.append(f"| `{it.name}` | {it.default_text or plain} | {it.help}{unit} |{sample} |")
    return "\n".join(rows) + "\n"


def environment(*, write: bool = False) -> Iterator[str]:
    """Each backend's page has the table of its variables, and their samples are valid."""
    for name, file in TABLES.items():
        path = ROOT / file
        text = path.read_text(encoding="utf-8")
        found = re.search(r"(?<=start:variables\] -->\n)(\|.*\n)+", text)
        if write and found:
            path.write_text(text.replace(found[0], table(name)), encoding="utf-8")
        elif not found or found[0] != table(name):
            yield f"{file}: the table of variables differs; run scripts/ci/check_docs.py --write"
        samples = {it.name: it.sample for it in settings_of(name) if it.sample}
        try:
            abe.load_backend(name, env=samples)
        except AbeError as error:
            yield f"{file}: the samples are refused: {error}"
    shown = page("reference/environment.md")
    files = (
        it for pattern in ("tests", "providers/*/tests") for it in ROOT.glob(f"{pattern}/**/*.py")
    )
    read = {it for path in files for it in TEST_VARIABLE.findall(path.read_text(encoding="utf-8"))}
    yield from (f"environment.md: {name} is missing" for name in sorted(read) if name not in shown)


def error_pages() -> Iterator[str]:
    """The page of errors has each of them, with its bases."""
    text = page("reference/errors.md")
    linked = {"AbeError", "Reject", "Retry"}
    for name in errors.__all__:
        builtin = ", ".join(f"`{it.__name__}`" for it in getattr(errors, name).__bases__[1:])
        wanted = [f"\n## {name}\n\n[abe.{name}][]", f"| [{name}](#{name.lower()}) | {builtin} |"]
        for part in [f"[abe.{name}]"] if name in linked else wanted:
            if part not in text:
                yield f"errors.md: {part!r} is missing"


def figures() -> Iterator[str]:
    """The numbers in the pages of explanation are those of the code."""
    policy = abe.RetryPolicy(jitter=False)
    waits = ", ".join(f"{policy.delay(n):g}" for n in range(1, policy.max_attempts))
    expected = {
        "architecture.md": (
            f"which the loop looks at every {ledger.INTERVAL * 1000:g} ms",
            f"{ledger.MAX_BATCH} settlements or {ledger.MAX_WAIT * 1000:g} ms",
            f"`{Subscription.wait.__qualname__}`",
            f"`{Subscription.pop.__qualname__}`",
            f"`{ledger.Ledger.record.__qualname__}`",
            f"`{BaseBackend.send.__qualname__}`",
        ),
        "delivery-semantics.md": (
            f"{ledger.MAX_WAIT * 1000:g} ms for company, or until {ledger.MAX_BATCH} have",
            f"{prefetch.MAX_PREFETCH} messages ({MemoryBackend.max_prefetch} on `memory`)",
            f"`max_hold` ({leases.MAX_HOLD / 60:g} minutes)",
            f"acks for {subscription.CLOSE_TIMEOUT:g} s while the stream closes",
            f"they set out up to {ledger.INTERVAL * 1000:g} ms later",
        ),
        "runtime-flow.md": (
            f"for {leases.MAX_HOLD / 60:g} minutes at most",
            f"allows {policy.max_attempts} attempts, waiting {waits} seconds",
            f"every {ledger.INTERVAL * 1000:g} ms in bursts",
            f"{reconnect.BACKOFF.first:g} s, doubling to {reconnect.BACKOFF.maximum:g} s",
        ),
    }
    for name, texts in expected.items():
        text = " ".join(page(f"explanation/{name}").split())
        yield from (f"{name}: {it!r} is missing" for it in texts if it not in text)


def results() -> Iterator[str]:
    """The provider matrix is up to date: every backend, every case that applies."""
    sys.path.insert(0, str(ROOT / "docs" / ".hooks"))
    import matrix

    columns = list(matrix.columns())
    installed = (it for it in abe.list_backends() if str(it.distribution).startswith("ab"))
    shown = {column.title.partition(" ")[0].strip("`") for column in columns}
    stale = [f"`{it.name}`" for it in installed if it.name not in shown]
    for column in columns:
        cases = {it.id for it in list_cases()}
        applying = {it.id for it in list_cases() if not unmet(it.needs, column.declared, True)}
        lacking = [
            it for it in applying - column.passed if "harness" not in column.skipped.get(it, "")
        ]
        if {*column.passed, *column.skipped} != cases or column.passed - applying or lacking:
            stale.append(column.title)
    if stale:
        yield f"docs/results is out of date for {', '.join(stale)}: run nox -s matrix"


def main() -> int:
    """Print every problem and return the exit status."""
    logging.disable(logging.WARNING)  # backends that the samples configure
    if "--write" in sys.argv:
        sys.exit("\n".join(environment(write=True)))
    problems = [it for check in (environment, error_pages, figures, results) for it in check()]
    print(*problems, sep="\n", end="\n" if problems else "")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
