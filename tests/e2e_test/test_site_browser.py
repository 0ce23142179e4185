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
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

    from tests.e2e_test.conftest import Site

pytestmark = pytest.mark.timeout(900)  # the first test builds the site

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), "")
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
SCHEMES = ("default", "slate")
"""Light and dark."""
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
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


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
    """What was seen on every page, in both colour schemes."""

    watched: Watched
    pages: int = 0
    diagrams: int = 0
    undrawn: set[str] = field(default_factory=set)
    violations: dict[str, set[str]] = field(
        default_factory=lambda: {scheme: set() for scheme in SCHEMES}
    )


@pytest.fixture(scope="module")
def sweep(browser: Browser, site: Site) -> Sweep:
    """Visit every page; check it in light colours, then in dark ones."""
    axe = (resources.files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")
    seen = Sweep(Watched(site.url))
    context = browser.new_context(color_scheme="light")
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    seen.watched.follow(page)
    for path in site.html():
        if path.name == "404.html":
            continue
        name = path.parent.relative_to(site.folder).as_posix()
        page.goto(f"{site.url}{name}/" if name != "." else site.url)
        seen.pages += 1
        diagrams = len(sources(path.read_text(encoding="utf-8")))
        if diagrams:
            seen.diagrams += diagrams
            page.wait_for_function("!document.querySelector('pre.mermaid')")
            drawn = page.locator("div.mermaid")
            heights = [box["height"] for it in drawn.all() if (box := it.bounding_box())]
            if len(heights) != diagrams or min(heights) < 40:
                seen.undrawn.add(name)
        page.evaluate(axe)
        page.add_style_tag(content="* { transition: none !important }")
        for _ in SCHEMES:
            scheme = page.evaluate("document.body.dataset.mdColorScheme")
            found = page.evaluate("rules => axe.run({runOnly: rules})", RULES)
            seen.violations[scheme] |= set(told(name, found))
            page.locator(".md-header__option label:visible").click()
            page.wait_for_function(
                "before => document.body.dataset.mdColorScheme !== before", arg=scheme
            )
    context.close()
    return seen


def told(page: str, found: Any) -> Iterator[str]:
    """Yield a line for each violation that axe found."""
    for violation in found["violations"]:
        for node in violation["nodes"]:
            why = (node["any"] or node["all"] or node["none"])[0]["message"]
            yield f"{page}: {violation['id']}: {node['html'][:120]}: {why}"


def sources(page: str) -> list[str]:
    """Return the diagrams of a page, as they were written."""
    found = re.findall(r'<pre class="mermaid"[^>]*><code>(.*?)</code></pre>', page, re.DOTALL)
    return [html.unescape(text) for text in found]


def test_every_page_was_visited(sweep: Sweep, site: Site) -> None:
    assert sweep.pages == len(site.html()) - 1
    assert sweep.pages > 40


def test_pages_fetch_nothing_from_elsewhere(sweep: Sweep) -> None:
    assert sweep.watched.foreign == set()


def test_pages_run_without_an_error(sweep: Sweep) -> None:
    assert sweep.watched.problems == []


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_page_is_accessible(sweep: Sweep, scheme: str) -> None:
    found = sorted(sweep.violations[scheme])
    assert not found, "\n".join(found[:40])


def test_the_check_would_notice(browser: Browser, site: Site) -> None:
    axe = (resources.files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")
    page = browser.new_page()
    page.goto(site.url)
    page.evaluate("document.querySelector('h1').style.color = '#eee'")
    page.evaluate("document.querySelector('article').append(new Image())")
    page.evaluate(axe)
    found = page.evaluate("rules => axe.run({runOnly: rules})", RULES)
    assert {it["id"] for it in found["violations"]} == {"color-contrast", "image-alt"}
    page.close()


def test_every_diagram_is_drawn(sweep: Sweep) -> None:
    assert sweep.undrawn == set()
    assert sweep.diagrams > 5


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
    follow(page, "reference/api/", "")
    assert page.locator("h2.doc-heading, h3.doc-heading").count() > 1
    follow(page, "reference/provider-matrix/", "Provider matrix")
    assert page.get_by_role("columnheader", name="sqlite").count() == 1
    follow(page, "reference/contract/", "The contract")
    follow(page, "tutorials/", "Tutorials")
    follow(page, "tutorials/05_provider_authoring/", "")
    assert page.get_by_text("new-provider").count() > 0


def follow(page: Page, target: str, title: str) -> None:
    """Click the first link that leads to the page ``target``, and wait for that page."""
    links = page.locator(f'a[href*="{target}"]:visible')
    found = [it for it in links.all() if re.search(rf"{target}[\w-]*/?(#.*)?$", address(it))]
    assert found, f"{page.url} has no link to {target}"
    found[-1].click()
    page.wait_for_url(re.compile(re.escape(target)))
    page.locator("h1", has_text=title).wait_for()


def address(link: Any) -> str:
    """Return where a link leads."""
    return str(link.evaluate("link => link.href"))


def test_pages_change_without_loading_anew(page: Page, site: Site) -> None:
    page.goto(site.url)
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
    result = page.locator(".md-search-result__link").first
    result.wait_for()
    assert page.locator(".md-search-result__link").count() > 3
    result.click()
    page.wait_for_url(re.compile(r"h=publish"))
    assert page.locator("mark", has_text=re.compile("publish", re.IGNORECASE)).count() > 0
