"""Every code block of the documentation runs as it stands there, or says why it does not."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from scripts.docs.blocks import Block, collect, pages

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "docs" / "blocks.py"
BLOCKS = collect(ROOT)
PAGES = sorted({block.path for block in BLOCKS if block.runs})


class Brokers:
    """Brokers of our own, each started when first needed."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._started: dict[str, tuple[Mapping[str, str], str]] = {}

    def lead_to(self, backend: str) -> tuple[Mapping[str, str], str]:
        """Return the variables that lead there, or why there is no broker."""
        if backend not in self._started:
            self._started[backend] = self._start(backend)
        return self._started[backend]

    def _start(self, backend: str) -> tuple[Mapping[str, str], str]:
        try:
            testing = importlib.import_module(f"abe_backend_{backend}.testing")
        except ModuleNotFoundError as error:
            return {}, str(error)
        try:
            return self._stack.enter_context(testing.broker()), ""
        except (FileNotFoundError, RuntimeError) as error:
            can_be_installed = getattr(testing, "has_wheel", lambda version: True)(None)
            if os.environ.get("CI") and can_be_installed:
                pytest.fail(f"{backend}: {error}")
            return {}, str(error)


@pytest.fixture(scope="module")
def brokers() -> Iterator[Brokers]:
    """Brokers for the pages that need one; stopped with the module."""
    with ExitStack() as stack:
        yield Brokers(stack)


def environment(folder: Path) -> dict[str, str]:
    """Return an environment in which a backend that is not named is a file in ``folder``."""
    ours = ("ABE_", "AWS_", "PYTEST_", "QUEUE_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    programs = os.pathsep.join([str(Path(sys.executable).parent), env["PATH"]])
    return env | {
        "PATH": programs,
        "QUEUE_BACKEND": "sqlite",
        "IPYTHONDIR": str(folder / "ipython"),
        "PYTHONUTF8": "1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


def run_page(page: Path, folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a page in a process of its own, with warnings as errors."""
    here = folder / "here"
    here.mkdir()
    return subprocess.run(
        [sys.executable, "-W", "error", str(SCRIPT), page.as_posix()],
        cwd=here,
        env=environment(folder) | env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )


def test_every_block_is_run_or_excused() -> None:
    """Data is parsed; of what is excused the syntax is checked."""
    assert PAGES
    problems = [problem for block in BLOCKS if (problem := block.problem())]
    assert not problems, "\n".join(["blocks of the documentation:", *problems])


def test_no_block_is_overlooked() -> None:
    """Such as one that is not closed, or closed with another indentation."""
    found = Counter(block.path for block in BLOCKS)
    for page in pages(ROOT):
        text = (ROOT / page).read_text(encoding="utf-8")
        fences = re.findall(r"^[ >]*(?:```|~~~)", text, re.MULTILINE)
        assert len(fences) == 2 * found[page], f"{page}: a fence that opens or closes nothing"


def test_workers_that_are_not_run_have_options_that_exist() -> None:
    """Those of units, images and the like."""
    words = {block: " ".join(re.split(r"[\s\\\[\]\",]+", block.code)) for block in BLOCKS}
    workers = {block: text.partition("abe run ")[2] for block, text in words.items()}
    shown = [block for block, text in workers.items() if text and not block.runs]
    assert {block.language for block in shown} >= {"sh", "ini", "dockerfile"}
    command = [sys.executable, "-m", "abe", "run", "--help"]
    known = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for block in shown:
        for option in re.findall(r"(?<!\S)--[a-z-]+", workers[block]):
            assert f"{option} " in known, f"{block}: abe run has no {option}"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", PAGES, ids=Path.as_posix)
def test_page(page: Path, tmp_path: Path, brokers: Brokers) -> None:
    """From top to bottom; by hand: ``python scripts/docs/blocks.py PAGE`` in an empty folder."""
    blocks = [block for block in BLOCKS if block.path == page]
    posix = os.name == "posix" and shutil.which("bash")
    if not posix and any(block.language == "sh" for block in blocks):
        pytest.skip("its shell commands are for bash on a POSIX system")
    env: dict[str, str] = {}
    missing: list[str] = []
    for need in sorted({block.need for block in blocks if block.need}):
        variables, reason = brokers.lead_to(need)
        env |= variables
        missing += [f"{need}: {reason}"] if reason else []
    done = run_page(page, tmp_path, **env)
    assert done.returncode == 0, done.stderr or done.stdout
    if missing:
        pytest.skip(f"run without the blocks that need {'; '.join(missing)}")


SAMPLE = """
```python title="shop.py"
x = 1
```

- A list:

    <!-- not run: it ends the world -->
    ```sh
    reboot
    ```

```python
print(x)  # -> 1
```

```sh
echo a1 b
```

<!-- prints -->
```text
a… b
```

<!-- needs: redis -->
```python
y = 2
```

```cobol
STOP RUN
```

```json
{]
```

<!-- not run: it is random -->
```sh
date
```

<!-- prints -->
```text
now
```
"""


def test_what_is_collected(tmp_path: Path) -> None:
    (tmp_path / "docs" / "how-to").mkdir(parents=True)
    (tmp_path / "docs" / ".hooks").mkdir()
    page = Path("docs/how-to/x.md")
    for file in (page, Path("docs/.hooks/hidden.md")):
        (tmp_path / file).write_text(SAMPLE, encoding="utf-8")
    blocks = collect(tmp_path)
    assert blocks[:3] == [
        Block(page, 2, "python", "x = 1\n", title="shop.py"),
        Block(page, 9, "sh", "reboot\n", excuse="it ends the world"),
        Block(page, 13, "python", "print(x)  # -> 1\n", output="1"),
    ]
    assert (blocks[3].output, blocks[5].need) == ("a… b\n", "redis")
    assert [block.runs for block in blocks] == [n in (0, 2, 3, 5) for n in range(10)]
    problems = [block.problem() for block in blocks]
    assert [bool(problem) for problem in problems] == [n in (6, 7, 8) for n in range(10)]
    assert problems[6].startswith("docs/how-to/x.md:31: 'cobol' blocks cannot be run; make it")
    assert problems[7].startswith("docs/how-to/x.md:35: this is no json")
    assert problems[8].startswith("docs/how-to/x.md:40: it is not run, so nobody sees")


@pytest.mark.parametrize(
    ("block", "complaint"),
    [
        ("```python\nprint(1 + 1)  # -> 3\n```\n", "x.md:1 prints\n2\n\nbut the page says\n3"),
        ("```python\n\n1 / 0\n```\n", 'x.md", line 3, in <module>\n    1 / 0'),
        (
            "```python\nprint('a b')\n```\n\n<!-- prints -->\n```text\na\nc\n```\n",
            "x.md:1 prints\na b\n\nbut the page says\na\nc",
        ),
        ("```sh\nsleep 600 &\nfalse; true\n```\n", "bash ends with 1"),
        ("```ipython\n%nothing\n```\n", "%nothing` not found"),
        ("```python\nimport warnings\nwarnings.warn('old')\n```\n", "UserWarning: old"),
        (
            '```python title="test_x.py"\ndef test() -> None:\n    assert 1 == 2\n```\n',
            "assert 1 == 2",
        ),
    ],
)
def test_a_wrong_block_fails(block: str, complaint: str, tmp_path: Path) -> None:
    copy = tmp_path / "scripts" / "docs" / SCRIPT.name
    copy.parent.mkdir(parents=True)
    shutil.copy(SCRIPT, copy)
    (tmp_path / "x.md").write_text(block, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", str(copy), "x.md"],
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert complaint in done.stderr
