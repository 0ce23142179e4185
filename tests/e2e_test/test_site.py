"""The built documentation: complete, and with links that lead somewhere, all of them within it."""

from __future__ import annotations

import importlib
import re
import zlib
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urljoin, urlsplit

import pytest

if TYPE_CHECKING:
    from tests.e2e_test.conftest import Site

pytestmark = pytest.mark.timeout(900)  # the first test builds the site

LOADS = {
    ("img", "src"),
    ("script", "src"),
    ("iframe", "src"),
    ("source", "src"),
    ("object", "data"),
    ("use", "href"),
}
"""Attributes that make a browser fetch something; those of ``link`` depend on ``rel``."""
MODULES = (
    "abe",
    "abe.types",
    "abe.errors",
    "abe.sync",
    "abe.ipython",
    "abe.testing",
    "abe.logging",
    "abe.logging.utils",
    "abe.backends.message_queue.base",
    "abe.backends.message_queue.client",
    "abe.backends.message_queue.consumer",
    "abe.backends.message_queue.loader",
    "abe.backends.message_queue.service.memory",
    "abe.backends.message_queue.service.sqlite",
    "abe_backend_redis",
    "abe_backend_sqs",
)


class Page(HTMLParser):
    """What one page links to, what it loads, and where one can link to in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.anchors |= {found.get("id", ""), found.get("name", "")}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag == "link" and found.get("rel") not in ("canonical", "next", "prev", "edit"):
            self.loads.append(found.get("href", ""))
        self.loads += [value for name, value in found.items() if (tag, name) in LOADS]


@pytest.fixture(scope="module")
def pages(site: Site) -> dict[str, Page]:
    """The pages by address, relative to the site."""
    return {path.relative_to(site.folder).as_posix(): Page(path) for path in site.html()}


def targets(site: Site, pages: dict[str, Page]) -> Iterator[tuple[str, str, str, str]]:
    """Yield page, link, path and fragment of every link within the site."""
    for name, page in pages.items():
        for link in page.links:
            address = urlsplit(urljoin(site.url + name.removesuffix("index.html"), link))
            if f"{address.scheme}://{address.netloc}/" == site.url:
                yield name, link, unquote(address.path).lstrip("/"), unquote(address.fragment)


def test_it_builds_without_a_warning(site: Site) -> None:
    assert "WARNING" not in site.log
    assert len(site.html()) > 40


def test_every_link_leads_to_a_page(site: Site, pages: dict[str, Page]) -> None:
    broken = {
        f"{name}: {link}"
        for name, link, path, _ in targets(site, pages)
        if not (site.folder / path / ("index.html" if path[-1:] in ("", "/") else "")).is_file()
    }
    assert broken == set()


def test_every_anchor_is_there(site: Site, pages: dict[str, Page]) -> None:
    checked, missing = 0, set()
    for name, link, path, fragment in targets(site, pages):
        page = pages.get(f"{path}index.html")
        if page is not None and fragment and not fragment.startswith("__"):
            checked += 1
            if fragment not in page.anchors:
                missing.add(f"{name}: {link}")
    assert missing == set()
    assert checked > 1000


def test_pages_load_nothing_from_elsewhere(site: Site, pages: dict[str, Page]) -> None:
    foreign = {
        f"{name}: {load}"
        for name, page in pages.items()
        for load in page.loads
        if not urljoin(site.url + name, load).startswith((site.url, "data:"))
    }
    assert foreign == set()


def test_no_page_is_a_dead_end(site: Site, pages: dict[str, Page]) -> None:
    reached, new = {"index.html"}, {"index.html"}
    links: dict[str, set[str]] = {}
    for name, _, path, _ in targets(site, pages):
        links.setdefault(name, set()).add(f"{path}index.html")
    while new:
        new = set().union(*(links.get(name, set()) for name in new)) & pages.keys() - reached
        reached |= new
    assert set(pages) - reached == {"404.html"}


def inventory(site: Site) -> set[str]:
    """Return the names that can be linked to."""
    raw = (site.folder / "objects.inv").read_bytes().split(b"\n", 4)[4]
    return {line.split(" ")[0] for line in zlib.decompress(raw).decode().splitlines()}


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_is_documented(site: Site, module: str) -> None:
    if module.startswith("abe_") and find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    names = {f"{module}.{name}" for name in importlib.import_module(module).__all__}
    names.discard(f"{module}.__version__" if module != "abe" else "")
    assert names - inventory(site) == set()


def test_the_tutorials_show_outputs_and_can_be_downloaded(site: Site) -> None:
    notebooks = sorted((site.root / "notebooks").glob("*.ipynb"))
    for path in notebooks:
        page = (site.folder / "tutorials" / path.stem / "index.html").read_text(encoding="utf-8")
        shown = 'class="nb-output"' in page
        assert shown or ("redis" in path.stem and "Without outputs" in page), path.name
        copy = site.folder / "tutorials" / path.name
        assert copy.read_bytes() == path.read_bytes()
    assert len(notebooks) >= 6


def test_every_page_has_one_title(site: Site) -> None:
    titles = {path: path.read_text(encoding="utf-8").count("<h1") for path in site.html()}
    assert {path for path, number in titles.items() if number != 1} == set()


def test_pages_can_be_told_apart_in_lists(site: Site) -> None:
    """Those of a browser's tabs, of a search, of whoever shows a shared address."""
    pages = (path for path in site.html() if path.name != "404.html")
    heads = [path.read_text(encoding="utf-8").partition("<body")[0] for path in pages]
    for pattern in (
        r"<title>(.+?)</title>",
        r'<meta name="description" content="([^"]{15,})">',
        r'<meta property="og:title" content="([^"]+)">',
        r'<meta property="og:url" content="([^"]+)">',
    ):
        found = [match[1] for head in heads if (match := re.search(pattern, head))]
        assert len(found) == len(heads), pattern
        assert {it for it in found if found.count(it) > 1} == set()


def test_a_wrong_address_leads_on(site: Site, pages: dict[str, Page]) -> None:
    sections = {"tutorials/", "how-to/", "explanation/", "reference/"}
    assert {urljoin(site.url, it) for it in sections} <= {
        urljoin(site.url, link) for link in pages["404.html"].links
    }


def test_the_pages_name_no_place_on_this_machine(site: Site) -> None:
    for path in site.html():
        assert str(site.root) not in path.read_text(encoding="utf-8"), path


def test_the_edit_link_of_a_tutorial_leads_to_its_notebook(site: Site) -> None:
    page = (site.folder / "tutorials" / "01_quickstart" / "index.html").read_text(encoding="utf-8")
    assert 'href="https://github.com/example/abe/edit/main/notebooks/01_quickstart.ipynb"' in page


def test_every_option_of_a_magic_and_of_a_command_is_listed(site: Site) -> None:
    magics = (site.folder / "reference" / "magics" / "index.html").read_text(encoding="utf-8")
    assert len(re.findall(r'<h2 id="abe_\w+"', magics)) >= 12
    assert "--max-attempts" in magics
    assert "AbeMagics.limit" in magics
    commands = (site.folder / "reference" / "cli" / "index.html").read_text(encoding="utf-8")
    assert len(re.findall(r'<h3 id="abe-[\w-]+"', commands)) >= 11
    assert "--drain-timeout S" in commands


def test_the_matrix_counts_passed_cases(site: Site) -> None:
    page = (site.folder / "reference" / "provider-matrix" / "index.html").read_text("utf-8")
    rows = re.findall(r"<tr>\s*<td><code>(\w+)</code>.*?</tr>", page, re.DOTALL)
    assert {"memory", "sqlite"} <= set(rows)
    numbers = [int(it) for it in re.findall(r"<small>(\d+)</small>", page)]
    assert len(numbers) > 30
    assert min(numbers) > 0


def test_language_models_find_every_page(site: Site) -> None:
    contents = (site.folder / "llms.txt").read_text(encoding="utf-8")
    listed = set(re.findall(r"\]\((\S+?)\)", contents))
    names = {path.parent.relative_to(site.folder).as_posix() for path in site.html()} - {"."}
    assert {f"{site.url}{name}/" for name in names} <= listed
    for section in ("Tutorials", "How-to guides", "Explanation", "Reference", "Project"):
        assert f"\n## {section}\n" in contents
    everything = (site.folder / "llms-full.txt").read_text(encoding="utf-8")
    assert f"]({site.url}llms-full.txt)" in contents
    assert "abe.connect" in everything
    assert "¶" not in everything
    assert "```python\n" in everything
    assert "](../" not in everything
