"""``llms.txt``, a table of contents for language models, and ``llms-full.txt`` with all pages.

The format is that of https://llmstxt.org.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from markdownify import markdownify
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure import StructureItem
from mkdocs.structure.nav import Navigation, Section
from mkdocs.structure.pages import Page

__all__ = ["keep", "write"]

_texts: dict[str, str] = {}
UNREADABLE = r'<(style|script|svg)\b.*?</\1>|<a class="headerlink".*?</a>'


def keep(page: Page, html: str) -> None:
    """Remember what a page says, as Markdown."""
    text = markdownify(
        re.sub(UNREADABLE, "", html, flags=re.DOTALL),
        heading_style="ATX",
        code_language_callback=lambda tag: _language(tag.parent.get("class") or []),
        escape_misc=False,
        escape_underscores=False,
        escape_asterisks=False,
    )
    _texts[page.file.src_uri] = re.sub(r"\n{3,}", "\n\n", text).strip()


def _language(classes: list[str]) -> str:
    return next((it.removeprefix("language-") for it in classes if it.startswith("language-")), "")


def write(nav: Navigation, config: MkDocsConfig) -> None:
    """Write both files into the built site."""
    folder = Path(config.site_dir)
    head = f"# {config.site_name}\n\n> {config.site_description}\n"
    contents = "".join(_contents(nav.items))
    (folder / "llms.txt").write_text(f"{head}\n{contents}", encoding="utf-8")
    pages = [f"<!-- {_url(page)} -->\n\n{_texts[page.file.src_uri]}\n" for page in nav.pages]
    (folder / "llms-full.txt").write_text("\n".join([head, *pages]), encoding="utf-8")


def _contents(items: list[StructureItem], level: int = 2) -> Iterator[str]:
    for item in items:
        if isinstance(item, Page):
            yield f"- [{item.title}]({_url(item)}){_summary(item)}\n"
        elif isinstance(item, Section):
            yield f"\n{'#' * level} {item.title}\n\n"
            yield from _contents(item.children, level + 1)


def _url(page: Page) -> str:
    return page.canonical_url or page.url


def _summary(page: Page) -> str:
    """Return the first sentence of a page."""
    for block in _texts[page.file.src_uri].split("\n\n"):
        if re.match(r"[A-Z`*]", block):
            first = re.split(r"(?<=[.:])\s", " ".join(block.split()))[0]
            return f": {first.rstrip(':.')}"
    return ""
