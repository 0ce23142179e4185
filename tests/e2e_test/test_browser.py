"""What messages hold is inert, bounded and readable in a real browser and in text."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbconvert import HTMLExporter

if TYPE_CHECKING:
    from tests.e2e_test.conftest import Kernel

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), "")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--virtual-time-budget=3000", "--hide-scrollbars"),
]

SCRIPT = "document.documentElement.dataset.pwned='1'"
HOSTILE: dict[str, Any] = {
    "script": f"<script>{SCRIPT}</script>",
    "closing": f"</td></table></script><script>{SCRIPT}</script>",
    "image": f'<img src=x onerror="{SCRIPT}">',
    "svg": f'<svg onload="{SCRIPT}"><style>*{{display:none}}</style></svg>',
    "attribute": f'" onmouseover="{SCRIPT}" autofocus onfocus=\'{SCRIPT}\'',
    "link": f"javascript:{SCRIPT}",
    "entity": f"&lt;script&gt;{SCRIPT}&lt;/script&gt; &#60;script&#62;",
    "markdown": f"[x](javascript:{SCRIPT}) $$\\href{{javascript:{SCRIPT}}}{{x}}$$",
    "ansi": "\u001b[31mred\u001b[0m\u001b]0;title\u0007\u009b2J",
    "override": "user\u202etxt.exe \u2066\u2067\u200b\ufeff",
    "nul": "\u0000\u0008\r\n\u2028",
}

CELLS = [
    """
%load_ext abe
import json, pathlib
HOSTILE = json.loads(pathlib.Path("hostile.json").read_text())
q = %abe_connect memory
q.take(1, timeout=0)
deep = {}
for _ in range(90):
    deep = {"d": deep}
payloads = [{name: text, text: name} for name, text in HOSTILE.items()]
payloads += [{"big": "x<" * 2_500_000}, {str(n): n for n in range(10_000)}, deep]
""",
    "%abe_publish -H a={{HOSTILE['image']}} k -i payloads",
    "%abe_peek -n 100",
    "%abe_stats",
    """
with q.batch(2, timeout=5) as messages:
    for message in messages:
        message.reject(HOSTILE["script"] + HOSTILE["image"])
%abe_dead
""",
    """%%abe_handler k -g other -a 1 --name {{HOSTILE["image"]}}
import queue
failed = queue.Queue()
def bill(order):
    failed.put(1)
    raise ValueError(HOSTILE["script"] + str(dict(order))[:1000])
""",
    """
for _ in payloads[2:]:
    failed.get(timeout=20)
%abe_handlers
""",
    "%abe_stop --all",
    "%abe_consume -n 100",
    """%abe_publish k {"a": {{HOSTILE['script']}}, "b": {{ {1} }}}""",
]


@pytest.fixture(scope="module")
def browser() -> str:
    if not CHROMIUM:
        text = "chromium is not on PATH: that nothing executes in a browser is not checked"
        if os.environ.get("CI") == "true" and sys.platform == "linux":
            pytest.fail(text)
        pytest.skip(text)
    return CHROMIUM


@pytest.fixture(scope="module")
def notebook(jupyter: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A notebook full of hostile messages, executed in a real kernel."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "hostile.json").write_text(json.dumps(HOSTILE))
    cells = [nbformat.v4.new_code_cell(cell.strip()) for cell in CELLS]
    made = nbformat.v4.new_notebook(cells=cells)
    client = NotebookClient(
        made,
        kernel_name="abe-test",
        timeout=60,
        allow_errors=True,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute()
    return made


def outputs(notebook: Any, kind: str) -> list[str]:
    return [
        output["data"][kind]
        for cell in notebook.cells
        for output in cell.outputs
        if kind in output.get("data", {})
    ]


def test_only_the_last_cell_fails(notebook: Any) -> None:
    errors = [
        (n, output["ename"])
        for n, cell in enumerate(notebook.cells)
        for output in cell.outputs
        if output["output_type"] == "error"
    ]
    assert errors == [(len(CELLS) - 1, "PayloadError")]


def test_the_card_of_a_handler_is_saved_as_it_was_last(notebook: Any) -> None:
    (card,) = [text for text in outputs(notebook, "text/plain") if text.startswith("handler ")]
    assert "stopped  0          12" in card
    assert "last error: ValueError: <script>" in card


def test_it_is_bounded_and_readable(notebook: Any) -> None:
    shown = outputs(notebook, "text/html")
    assert len(shown) >= 6
    assert max(map(len, shown)) < 60_000
    for page, text in zip(shown, outputs(notebook, "text/plain")[-len(shown) :], strict=True):
        for piece in (page, text):
            assert not re.search("[\u0000-\u0008\u001b\u009b\u202e\u2066\u2067\u2028]", piece)
    table = next(text for text in outputs(notebook, "text/plain") if "waiting on memory" in text)
    assert "<script>" in table
    assert "\\u202etxt.exe" in table
    assert "\\u001b[31mred" in table
    assert max(map(len, table.splitlines())) < 600


def dump_dom(browser: str, page: Path, folder: Path) -> str:
    command = [browser, *FLAGS, f"--user-data-dir={folder}", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout


def render(notebook: Any, path: Path) -> Path:
    """Write the notebook as HTML, without the scripts that nbconvert adds from the network."""
    page, _ = HTMLExporter(template_name="basic").from_notebook_node(notebook)
    path.write_text(f"<!doctype html><html><meta charset=utf-8><body>{page}</body></html>")
    return path


@pytest.mark.timeout(120)
def test_nothing_executes(browser: str, notebook: Any, tmp_path: Path) -> None:
    dom = dump_dom(browser, render(notebook, tmp_path / "page.html"), tmp_path / "profile")
    assert "data-pwned" not in dom.partition("<body>")[0]
    assert "&lt;script&gt;" in dom
    found = Elements(dom.partition("<body>")[2])
    assert found.tags & {"script", "img", "a", "iframe", "style", "object", "link"} == set()
    assert [name for name in found.attributes if name.startswith("on")] == []


class Elements(HTMLParser):
    """The elements and attributes of a page, as the browser has understood it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


@pytest.mark.parametrize("name", ["script", "image", "svg"])
def test_the_check_would_notice(browser: str, tmp_path: Path, name: str) -> None:
    page = tmp_path / "page.html"
    page.write_text(f"<!doctype html><html><body>{HOSTILE[name]}</body></html>")
    assert "data-pwned" in dump_dom(browser, page, tmp_path / "profile")


def test_the_size_of_a_message_does_not_matter(kernel: Kernel) -> None:
    kernel.ok("%load_ext abe\nq = %abe_connect memory --env ABE_MEMORY_NAME=big")
    kernel.ok(
        "q.publish('k', {'x': 'y' * 5_000_000})\n"
        "q.publish('k', dict.fromkeys(map(str, range(10_000)), 1))"
    )
    shown = kernel.ok("%abe_peek")
    assert len(shown.results[0]["text/html"]) < 3000
    kernel.ok("%unload_ext abe")
