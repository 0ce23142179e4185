"""The fenced code blocks of the documentation: collected, checked, and run page by page.

    python scripts/docs/blocks.py docs/how-to/sqlite.md

runs the blocks of a page from top to bottom in one process and the current folder, so take an empty
one. ``python`` blocks share a namespace, ``ipython`` blocks too, ``sh`` blocks have a shell each.
Data (``json``, ``toml``, ``yaml``, ``ini``) is parsed, ``text`` and ``mermaid`` are left alone; any
other language, such as ``console``, needs an excuse. Before a fence these say more, one a line:

- ``<!-- not run: REASON -->``: of this block only the syntax is checked
- ``<!-- needs: redis -->``: it is run where ``ABE_REDIS_…`` lead to a broker; likewise ``sqs``
- ``<!-- prints -->``: this is what the block before prints; ``…`` stands for anything, and a line
  break for any white space, so that long lines can be wrapped

A block with ``title="NAME"`` is a file of that name: the ``test_….py`` of a page are run by pytest
in the end, another ``.py`` is imported. In a ``python`` block, ``print(x)  # -> text`` promises the
output as well.
"""

from __future__ import annotations

import configparser
import contextlib
import importlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import tomllib
import types
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

__all__ = ["Block", "collect", "pages"]

RUN = ("python", "ipython", "sh")
DATA = ("json", "toml", "yaml", "ini")
TEXT = ("text", "mermaid")
LONGEST = 300.0
"""Seconds that a command of a block may take."""

_FENCE = re.compile(
    r"(?P<notes>(?:^ *<!-- [^\n]+? -->\n)*)"
    r"^(?P<indent> *)(?P<fence>`{3,}) ?(?P<language>[\w-]*)(?P<options>[^\n`]*)\n"
    r"(?P<code>.*?)^(?P=indent)(?P=fence) *$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        path: The page, relative to the root.
        line: Line of the opening fence, from 1.
        language: What stands after the fence.
        code: What the block contains, without its indentation.
        title: Name of the file that it is, if it is one.
        excuse: Why it is not run, if it is not to be.
        need: Name of the backend without whose broker it cannot be run.
        output: What it prints, ``None`` if the page does not say.
    """

    path: Path
    line: int
    language: str
    code: str
    title: str | None = None
    excuse: str | None = None
    need: str | None = None
    output: str | None = None

    def __str__(self) -> str:
        return f"{self.path.as_posix()}:{self.line}"

    @property
    def runs(self) -> bool:
        """Whether a test executes it."""
        return self.language in RUN and self.excuse is None

    def problem(self) -> str:
        """Return what is wrong with it and what to do, as far as that shows without running."""
        if self.excuse is None and self.language not in (*RUN, *DATA, *TEXT):
            what = f"{self.language!r} blocks cannot be run" if self.language else "no language"
            return (
                f"{self}: {what}; make it {', '.join(RUN)}, or text if it is neither code nor "
                "data, or write <!-- not run: REASON --> on the line before"
            )
        if self.output is not None and not self.runs:
            return f"{self}: it is not run, so nobody sees whether it prints that; promise nothing"
        try:
            _parse(self.language, self.code)
        except (ValueError, SyntaxError, configparser.Error) as error:
            return f"{self}: this is no {self.language}: {error}"
        return ""


def pages(root: Path) -> list[Path]:
    """Return the project's prose: files relative to ``root``."""
    patterns = ("*.md", "docs/**/*.md", "providers/*/README.md")
    found = [page.relative_to(root) for pattern in patterns for page in root.glob(pattern)]
    return sorted(page for page in found if not any(part.startswith(".") for part in page.parts))


def collect(root: Path) -> list[Block]:
    """Return every fenced block of the project's prose, page by page, in order."""
    return [block for page in pages(root) for block in _blocks(root, page)]


def _blocks(root: Path, page: Path) -> Iterator[Block]:
    text = (root / page).read_text(encoding="utf-8")
    found = list(_FENCE.finditer(text))
    for match, after in zip_longest(found, found[1:]):
        title = re.search(r'title="(.+?)"', match["options"])
        prints = after is not None and "<!-- prints -->" in after["notes"]
        yield Block(
            path=page,
            line=text.count("\n", 0, match.start("fence")) + 1,
            language=match["language"],
            code=_code(match),
            title=title[1] if title else None,
            excuse=_note("not run", match),
            need=_note("needs", match),
            output=_code(after) if prints and after else _promised(match),
        )


def _code(match: re.Match[str]) -> str:
    return textwrap.dedent(match["code"]) if match["indent"] else match["code"]


def _note(name: str, match: re.Match[str]) -> str | None:
    found = re.search(rf"<!-- {name}: (.+?) -->", match["notes"])
    return found[1] if found else None


def _promised(match: re.Match[str]) -> str | None:
    lines = re.findall(r"^ *print\(.*\)  # -> (.*)$", match["code"], re.MULTILINE)
    return "\n".join(lines) if lines and match["language"] == "python" else None


def _parse(language: str, code: str) -> None:
    if language == "python":
        compile(code, "block", "exec")
    elif language in ("sh", "console") and shutil.which("bash"):
        checked = subprocess.run(["bash", "-n"], input=code, capture_output=True, text=True)  # noqa: S607
        if checked.returncode:
            raise ValueError(checked.stderr.strip())
    elif language == "json":
        try:
            json.loads(code)
        except ValueError:
            for line in code.splitlines():
                json.loads(line)
    elif language == "toml":
        tomllib.loads(code)
    elif language == "ini":
        configparser.RawConfigParser(strict=False).read_string(code)
    elif language == "yaml":
        import yaml

        try:
            list(yaml.safe_load_all(code))
        except yaml.YAMLError as error:
            raise ValueError(error) from None


# --- Running --------------------------------------------------------------------------------------


class _Page:
    """What the blocks of one page share: a namespace, an IPython shell, the current folder."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._tests: list[str] = []
        self._main = sys.modules["__main__"] = types.ModuleType("__main__")
        sys.path.insert(0, str(Path.cwd()))

    def run(self, block: Block) -> None:
        """Run a block; raises what it raises, and `AssertionError` if it prints something else."""
        if block.title is not None:
            Path(block.title).parent.mkdir(parents=True, exist_ok=True)
            Path(block.title).write_text(block.code, encoding="utf-8")
        if not block.runs or (block.need is not None and not _configured(block.need)):
            return
        printed = getattr(self, f"_{block.language}")(block)
        if block.output is not None and not _fits(printed, block.output):
            raise AssertionError(f"{block} prints\n{printed}\nbut the page says\n{block.output}")

    def _python(self, block: Block) -> str:
        if block.title is not None:
            return self._file(Path(block.title))
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            # Empty lines before it make the lines of a traceback those of the page.
            code = compile("\n" * block.line + block.code, str(self._root / block.path), "exec")
            exec(code, self._main.__dict__)  # noqa: S102 - our own documentation
        return printed.getvalue()

    def _file(self, file: Path) -> str:
        if file.name.startswith("test_"):
            self._tests.append(str(file))
        else:
            importlib.invalidate_caches()
            importlib.import_module(".".join(file.with_suffix("").parts))
        return ""

    def end(self) -> None:
        """Run the tests that the page shows, if there are any."""
        if self._tests:
            options = ("-q", "-W", "error", "-p", "no:cacheprovider")
            _output([sys.executable, "-m", "pytest", *options, *self._tests])

    def _sh(self, block: Block) -> str:
        return _output(["bash", "-euc", block.code])

    def _ipython(self, block: Block) -> str:
        from IPython.core.interactiveshell import InteractiveShell
        from traitlets.config import Config

        config = Config()
        config.HistoryManager.enabled = False
        config.InteractiveShell.colors = "nocolor"
        shell = InteractiveShell.instance(config=config, user_module=self._main)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            for cell in re.split(r"\n\n(?=%%)", block.code):
                shell.run_cell(cell).raise_error()
        return printed.getvalue()


def _configured(backend: str) -> bool:
    return any(name.startswith(f"ABE_{backend.upper()}_") for name in os.environ)


def _output(command: list[str]) -> str:
    with tempfile.TemporaryFile("w+", encoding="utf-8") as printed:
        process = subprocess.Popen(command, stdout=printed, start_new_session=True)  # noqa: S603
        try:
            status = process.wait(timeout=LONGEST)
        finally:
            if hasattr(os, "killpg"):  # with what it has left in the background
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        printed.seek(0)
        text = printed.read()
    if status:
        raise AssertionError(f"{command[0]} ends with {status}; it printed\n{text}")
    return text


def _fits(printed: str, promised: str) -> bool:
    lines = (line.rstrip() for line in printed.strip().splitlines())
    pattern = re.escape(promised.strip()).replace("…", ".*?").replace("\\\n", r"\s+")
    return re.fullmatch(pattern, "\n".join(lines), re.DOTALL) is not None


def main() -> None:
    """Run one page."""
    root = Path(__file__).resolve().parents[2]
    wanted = Path(sys.argv[1])
    blocks = [block for block in collect(root) if block.path == wanted]
    page = _Page(root)
    for block in blocks:
        page.run(block)
    page.end()
    print(f"{wanted} does what it says")


if __name__ == "__main__":
    main()
