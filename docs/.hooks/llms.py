"""What machines read: the description of each page, ``llms.txt`` and ``llms-full.txt``.

``llms.txt`` is a table of contents for language models, ``llms-full.txt`` has all pages; the format
is that of https://llmstxt.org.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import urljoin

from markdownify import markdownify
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure import StructureItem
from mkdocs.structure.nav import Navigation, Section
from mkdocs.structure.pages import Page

__all__ = ["as_markdown", "describe", "keep", "write"]

_texts: dict[str, str] = {}
UNREADABLE = r'<(style|script|svg)\b.*?</\1>|<a [^>]*\bclass="headerlink".*?</a>'


def keep(page: Page, content: str) -> None:
    """Remember what a page says, and have its first sentence as its description."""
    _texts[page.file.src_uri] = as_markdown(content, _url(page))
    page.meta["description"] = html.escape(describe(content))


def describe(content: str) -> str:
    """Return the first sentence of a page, as text.

    >>> describe("<h1>T</h1> <p><code>abe</code> has <a href='x'>a &lt;b&gt;</a>: c. M.</p>")
    'abe has a <b>: c.'
    """
    paragraph = re.search(r"<p>(.*?)</p>", content, re.DOTALL)
    text = html.unescape(re.sub(r"<[^>]+>", "", paragraph[1])) if paragraph else ""
    return re.split(r"(?<=[.?!])\s", " ".join(text.split()))[0]


def as_markdown(content: str, address: str) -> str:
    """Return a page as Markdown, with links that do not depend on where it is read.

    >>> page = '<a class="x" href="../../api/#abe">a</a> <a href="#b">b</a> <a href="../..">c</a>'
    >>> as_markdown(page, "how-to/redis/")
    '[a](api/#abe) [b](how-to/redis/#b) [c](./)'
    >>> as_markdown(page, "https://example.org/how-to/redis/")
    '[a](https://example.org/api/#abe) [b](https://example.org/how-to/redis/#b) [c](https://example.org/)'
    """
    content = re.sub(UNREADABLE, "", content, flags=re.DOTALL)
    content = re.sub(
        r'(?<=<a )([^>]*\bhref=")([^"]*)',
        lambda found: found[1] + _joined(address, found[2]),
        content,
    )
    text = markdownify(
        content,
        heading_style="ATX",
        code_language_callback=lambda tag: _language(tag.parent.get("class") or []),
        escape_misc=False,
        escape_underscores=False,
        escape_asterisks=False,
    )
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def _joined(address: str, link: str) -> str:
    """Return where a link of a page leads; without an address of the site, relative to its root."""
    return urljoin(urljoin("/", address), link).removeprefix("/") or "./"


def _language(classes: list[str]) -> str:
    return next((it.removeprefix("language-") for it in classes if it.startswith("language-")), "")


def write(nav: Navigation, config: MkDocsConfig) -> None:
    """Write both files into the built site."""
    folder = Path(config.site_dir)
    head = f"# {config.site_name}\n\n> {config.site_description}\n"
    everything = urljoin(config.site_url or "", "llms-full.txt")
    more = f"\nAll pages in one file: [llms-full.txt]({everything})\n"
    contents = "".join(_contents(nav.items))
    (folder / "llms.txt").write_text(f"{head}{more}\n{contents}", encoding="utf-8")
    pages = [f"<!-- {_url(page)} -->\n\n{_texts[page.file.src_uri]}\n" for page in nav.pages]
    (folder / "llms-full.txt").write_text("\n".join([head, *pages]), encoding="utf-8")


def _contents(items: Iterable[StructureItem]) -> Iterator[str]:
    for item in items:
        if isinstance(item, Section):
            yield f"\n## {item.title}\n\n"
            yield from map(_line, _pages(item))
        elif isinstance(item, Page):
            yield _line(item)


def _pages(section: Section) -> Iterator[Page]:
    """Yield the pages of a section and of those within it."""
    for item in section.children:
        if isinstance(item, Section):
            yield from _pages(item)
        elif isinstance(item, Page):
            yield item


def _line(page: Page) -> str:
    told = html.unescape(page.meta["description"]).rstrip(".")
    return f"- [{page.title}]({_url(page)})" + (f": {told}\n" if told else "\n")


def _url(page: Page) -> str:
    return page.canonical_url or page.url or "./"
