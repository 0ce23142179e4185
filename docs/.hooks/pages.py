"""Hooks for MkDocs: the pages, and the parts of pages, that no file in ``docs/`` holds.

``python docs/.hooks/pages.py FOLDER`` writes a copy of ``docs/`` with all of them, for generators
that know no hooks.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import llms
import matrix
import reference
from jobs import ROOT, run_all
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.nav import Navigation
from mkdocs.structure.pages import Page

import notebooks

GENERATED: dict[str, Callable[[], str]] = {
    "cases": reference.cases,
    "commands": reference.command_options,
    "magics": reference.magics,
    "matrix": matrix.matrix,
    "settings": reference.settings,
}
"""What ``<!-- generated: NAME -->`` on a line of its own stands for."""


def expanded(markdown: str) -> str:
    """Return a page with what it includes: files of the repository, and what code generates."""
    markdown = re.sub(r'^--8<-- "([\w./-]+\.md)"$', _included, markdown, flags=re.MULTILINE)
    return re.sub(r"^<!-- generated: (\w+) -->$", _generated, markdown, flags=re.MULTILINE)


def _included(match: re.Match[str]) -> str:
    """Return a file whose links into the repository lead to pages of the site."""
    text = (ROOT / match[1]).read_text(encoding="utf-8")
    text = re.sub(r"\]\(docs/([^)\s]+)\)", r"](\1)", text)
    return re.sub(r"\]\(notebooks/([\w-]+)\.ipynb\)", r"](tutorials/\1.md)", text)


def _generated(match: re.Match[str]) -> str:
    if match[1] not in GENERATED:
        raise PluginError(f"nothing generates {match[1]!r}; there are {', '.join(GENERATED)}")
    return GENERATED[match[1]]()


@event_priority(100)
def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the tutorials, before any plugin looks at the pages."""
    run_all(notebooks.jobs())
    for path in notebooks.notebooks():
        page = File.generated(config, f"tutorials/{path.stem}.md", content=notebooks.page(path))
        page.edit_uri = f"../notebooks/{path.name}"
        files.append(page)
        source = path.read_text(encoding="utf-8")
        files.append(File.generated(config, f"tutorials/{path.name}", content=source))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in what a page includes, and let a search find guides before the API."""
    if page.file.src_uri.startswith(("reference/api/", "reference/logging")):
        page.meta.setdefault("search", {"boost": 0.5})
    return expanded(markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Keep the text of a page for machines, and the text of diagrams from the search."""
    llms.keep(page, html)
    return html.replace('<pre class="mermaid">', '<pre class="mermaid" data-search-exclude>')


_nav: Navigation | None = None


def on_nav(nav: Navigation, config: MkDocsConfig, files: Files) -> None:
    """Keep the order of the pages."""
    global _nav
    _nav = nav


def on_post_build(config: MkDocsConfig) -> None:
    """Write llms.txt and llms-full.txt."""
    assert _nav is not None
    llms.write(_nav, config)


def write(folder: Path) -> None:
    """Write a copy of ``docs/`` in which nothing is left to generate."""
    shutil.copytree(ROOT / "docs", folder, ignore=shutil.ignore_patterns(".*"))
    for path in folder.rglob("*.md"):
        path.write_text(expanded(path.read_text(encoding="utf-8")), encoding="utf-8")
    for path in notebooks.notebooks():
        target = folder / "tutorials" / path.name
        shutil.copy(path, target)
        target.with_suffix(".md").write_text(notebooks.page(path), encoding="utf-8")


if __name__ == "__main__":
    run_all(notebooks.jobs())
    write(Path(sys.argv[1]))
