"""The built documentation in a real browser: nothing fetched elsewhere, accessible, no dead ends.

The accessibility rules are those of WCAG 2.2, levels A and AA, as far as axe can tell.
"""

from __future__ import annotations

import html
import os
import re
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page, Playwright

    from tests.e2e_test.conftest import Site

pytestmark = pytest.mark.timeout(900)  # the first test builds the site

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), "")
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
CHECK = """async rules =>
    (await axe.run({runOnly: rules, resultTypes: ["violations"]})).violations
"""
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
PATIENCE = 20_000
"""Milliseconds."""


@pytest.fixture(scope="module")
def browser(site: Site) -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    if not CHROMIUM:
        text = "chromium is not on PATH: the documentation is not looked at in a browser"
        if os.environ.get("CI") and sys.platform == "linux":
            pytest.fail(text)
        pytest.skip(text)
    with sync_playwright() as playwright, launch(playwright) as started:
        yield started


def launch(playwright: Playwright) -> Browser:
    """Start a browser of its own."""
    return playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@pytest.fixture
def context(browser: Browser, site: Site) -> Iterator[BrowserContext]:
    made = browser.new_context(base_url=site.url)
    made.set_default_timeout(PATIENCE)
    made.grant_permissions(["clipboard-read", "clipboard-write"])
    yield made
    made.close()


@pytest.fixture
def page(context: BrowserContext, site: Site) -> Iterator[Page]:
    """A page of a visitor; whatever goes wrong behind the scenes fails the test."""
    made = context.new_page()
    watched = Watched(site.url)
    watched.follow(made)
    yield made
    assert (watched.foreign, watched.problems) == (set(), [])


@dataclass
class Watched:
    """What a browser does besides showing pages."""

    url: str
    foreign: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)

    def follow(self, page: Page) -> None:
        """Note requests that leave the site, failed ones, and errors of scripts."""
        page.on("request", lambda it: self._requested(it.url))
        page.on("response", lambda it: self._note(f"{it.status} {it.url}", it.status >= 400))
        page.on("pageerror", lambda it: self._note(str(it), True))
        page.on("console", lambda it: self._note(it.text, it.type == "error"))

    def _requested(self, url: str) -> None:
        if not url.startswith((self.url, "data:", "blob:")):
            self.foreign.add(url)

    def _note(self, text: str, wrong: bool) -> None:
        if wrong:
            self.problems.append(text)


@dataclass
class Sweep:
    """What was seen on every page, in one colour scheme."""

    watched: Watched
    colours: set[str] = field(default_factory=set)
    pages: int = 0
    diagrams: int = 0
    undrawn: set[str] = field(default_factory=set)
    violations: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def sweeps(browser: Browser, site: Site) -> dict[str, Sweep]:
    """Every page visited in both colour schemes, side by side."""
    with ThreadPoolExecutor(len(SCHEMES)) as pool:
        visits = {scheme: pool.submit(visit_all, site, scheme) for scheme in SCHEMES}
        return {scheme: visit.result() for scheme, visit in visits.items()}


def visit_all(site: Site, scheme: Literal["light", "dark"]) -> Sweep:
    from playwright.sync_api import sync_playwright

    seen = Sweep(Watched(site.url))
    with sync_playwright() as playwright, launch(playwright) as browser:
        page = browser.new_page(color_scheme=scheme, reduced_motion="reduce")
        page.set_default_timeout(PATIENCE)
        seen.watched.follow(page)
        for path in site.html():
            if path.name != "404.html":
                visit(page, site, path, seen)
    return seen


def visit(page: Page, site: Site, path: Path, seen: Sweep) -> None:
    """Look at one page: are its diagrams drawn, is it accessible?"""
    name = path.relative_to(site.folder).as_posix().removesuffix("index.html")
    page.goto(site.url + name)
    seen.pages += 1
    seen.colours.add(page.evaluate("document.body.dataset.mdColorScheme"))
    diagrams = len(sources(path.read_text(encoding="utf-8")))
    if diagrams:
        seen.diagrams += diagrams
        page.wait_for_function("!document.querySelector('pre.mermaid')")
        drawn = page.locator("div.mermaid").all()
        heights = [box["height"] for it in drawn if (box := it.bounding_box())]
        if len(heights) != diagrams or min(heights) < 40:
            seen.undrawn.add(name)
    page.evaluate(axe())
    seen.violations += told(name, page.evaluate(CHECK, RULES))


def axe() -> str:
    """Return the accessibility checker, a script."""
    return (resources.files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")


def told(page: str, found: Any) -> Iterator[str]:
    """Yield a line for each violation that axe found."""
    for violation in found:
        for node in violation["nodes"]:
            why = (node["any"] or node["all"] or node["none"])[0]["message"]
            yield f"{page}: {violation['id']}: {node['html'][:120]}: {why}"


def sources(page: str) -> list[str]:
    """Return the diagrams of a page, as they were written."""
    found = re.findall(r'<pre class="mermaid"[^>]*><code>(.*?)</code></pre>', page, re.DOTALL)
    return [html.unescape(text) for text in found]


@pytest.mark.parametrize("scheme", SCHEMES)
class TestEveryPage:
    def test_was_visited(self, sweeps: dict[str, Sweep], scheme: str, site: Site) -> None:
        assert sweeps[scheme].pages == len(site.html()) - 1
        assert sweeps[scheme].pages > 40
        assert sweeps[scheme].colours == {{"light": "default", "dark": "slate"}[scheme]}

    def test_fetches_nothing_from_elsewhere(self, sweeps: dict[str, Sweep], scheme: str) -> None:
        assert sweeps[scheme].watched.foreign == set()

    def test_runs_without_an_error(self, sweeps: dict[str, Sweep], scheme: str) -> None:
        assert sweeps[scheme].watched.problems == []

    def test_is_accessible(self, sweeps: dict[str, Sweep], scheme: str) -> None:
        found = sweeps[scheme].violations
        assert not found, "\n".join(found[:40])

    def test_has_its_diagrams_drawn(self, sweeps: dict[str, Sweep], scheme: str) -> None:
        assert sweeps[scheme].undrawn == set()
        assert sweeps[scheme].diagrams > 5


def test_the_check_would_notice(browser: Browser, site: Site) -> None:
    page = browser.new_page()
    page.goto(site.url)
    page.evaluate("document.querySelector('h1').style.color = '#eee'")
    page.evaluate("document.querySelector('article').append(new Image())")
    page.evaluate(axe())
    found = page.evaluate(CHECK, RULES)
    assert {it["id"] for it in found} == {"color-contrast", "image-alt"}
    page.close()


def test_no_diagram_has_a_syntax_error(page: Page, site: Site) -> None:
    page.goto(site.url)
    for path in site.html():
        for number, source in enumerate(sources(path.read_text(encoding="utf-8"))):
            name = f"{path.parent.name}-{number}"
            svg = page.evaluate(
                "async ([name, text]) => (await mermaid.render(`d-${name}`, text)).svg",
                [name, source],
            )
            assert "Syntax error" not in svg, f"{name}: {source}"


def test_diagrams_can_be_read_on_a_phone(page: Page, site: Site) -> None:
    heights = {}
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 800})
        page.goto(f"{site.url}explanation/runtime-flow/")
        page.wait_for_function("!document.querySelector('pre.mermaid')")
        drawn = page.locator("div.mermaid").all()
        heights[width] = [box["height"] for it in drawn if (box := it.bounding_box())]
    assert len(heights[1280]) > 5
    assert heights[390] == pytest.approx(heights[1280], rel=0.2)
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_dark_pages_print_dark_on_white(browser: Browser, site: Site) -> None:
    page = browser.new_page(color_scheme="dark")
    page.goto(f"{site.url}tutorials/04_reliable_workers/")
    page.emulate_media(media="print", color_scheme="dark")
    page.evaluate(axe())
    assert list(told("printed", page.evaluate(CHECK, RULES))) == []
    page.close()


def test_the_path_of_a_newcomer(page: Page, site: Site) -> None:
    """From the home page to a provider of one's own, by clicking."""
    page.goto(site.url)
    block = page.locator("div.highlight", has_text='pip install -e ".[notebook]"').first
    block.hover()
    block.locator("button.md-code__button").click()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.strip() == 'pip install -e ".[notebook]"'

    follow(page, "tutorials/01_quickstart/", "Quickstart")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download this notebook").click()
    assert download.value.suggested_filename == "01_quickstart.ipynb"
    follow(page, "reference/api/")
    assert page.locator("h2.doc-heading, h3.doc-heading").count() > 1
    follow(page, "reference/provider-matrix/", "Provider matrix")
    assert page.get_by_role("columnheader", name="sqlite").count() == 1
    follow(page, "reference/contract/", "The contract")
    follow(page, "tutorials/", "Tutorials")
    follow(page, "tutorials/05_provider_authoring/")
    assert page.get_by_text("new-provider").count() > 0


def follow(page: Page, target: str, title: str = "") -> None:
    """Click a link that leads to the page ``target``, or one below it, and wait for that page."""
    links = page.locator(f'a[href*="{target}"]:visible')
    found = [it for it in links.all() if re.search(rf"{target}[\w-]*/?(#.*)?$", address(it))]
    assert found, f"{page.url} has no link to {target}"
    before = page.locator("h1").inner_text()
    found[-1].click()
    page.wait_for_url(re.compile(re.escape(target)))
    page.wait_for_function(
        "before => document.querySelector('h1')?.innerText !== before", arg=before
    )
    assert title in page.locator("h1").inner_text()


def address(link: Any) -> str:
    """Return where a link leads."""
    return str(link.evaluate("link => link.href"))


def test_pages_change_without_loading_anew(page: Page, site: Site) -> None:
    # Which links are pages of the site is known from its map; before that, a click loads anew.
    with page.expect_response("**/sitemap.xml") as map_of_site:
        page.goto(site.url)
    map_of_site.value.finished()
    page.wait_for_load_state("networkidle")
    page.evaluate("window.kept = 1")
    page.get_by_role("navigation", name="Tabs").get_by_role("link", name="Explanation").click()
    page.wait_for_url("**/explanation/")
    page.locator('.md-sidebar--primary a[href*="runtime-flow"]').click()
    page.wait_for_url("**/runtime-flow/")
    page.wait_for_function("document.querySelectorAll('div.mermaid').length > 3")
    assert page.evaluate("window.kept") == 1


def test_search_finds_publish(page: Page, site: Site) -> None:
    page.goto(site.url)
    page.locator(".md-search__input").click()
    page.keyboard.type("publish")
    # Results of a word that is not typed to its end lead elsewhere.
    result = page.locator(".md-search-result__link[href*='h=publish']").first
    result.wait_for()
    assert page.locator(".md-search-result__link").count() > 3
    result.click()
    page.wait_for_url(re.compile(r"h=publish"))
    assert page.locator("mark", has_text=re.compile("publish", re.IGNORECASE)).count() > 0
