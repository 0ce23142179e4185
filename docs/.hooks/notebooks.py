"""The tutorials: every notebook, executed while the site is built, as a page of Markdown.

Markdown cells pass through, so links to symbols and admonitions work in them. The pages exist only
in the build; ``pages.py`` writes them into a folder for generators without hooks.
"""

from __future__ import annotations

import html
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jobs import ROOT, Job, source_files, under_ci
from mkdocs.exceptions import PluginError

__all__ = ["jobs", "notebooks", "page"]

FOLDER = ROOT / "notebooks"
PROGRAM = ROOT / "scripts" / "execute.py"
ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07]*\x07)")

Json = Mapping[str, Any]


def notebooks() -> list[Path]:
    """Return the notebooks, in order."""
    return sorted(FOLDER.glob("*.ipynb"))


def jobs() -> list[Job]:
    """Return what executes the notebooks that can be executed here."""
    return [job(path) for path in notebooks() if not lacking(path)]


def job(path: Path) -> Job:
    """Return what executes a notebook."""
    files = [path, PROGRAM]
    if "redis" in path.stem:
        files += source_files(ROOT / "providers" / "abe-backend-redis" / "abe_backend_redis")
    return Job(f"notebook-{path.stem}", ["-m", "scripts.execute", str(path), "{result}"], files)


def lacking(path: Path) -> str:
    """Return what a notebook needs and is not here, "" if it can be executed.

    Raises:
        PluginError: If something is missing under CI.
    """
    if "redis" not in path.stem:
        return ""
    text = ""
    if find_spec("abe_backend_redis") is None:
        text = "the provider for Redis was not installed"
    elif not os.environ.get("ABE_TEST_REDIS_URL"):
        from abe_backend_redis.testing import find_server

        text = "" if find_server(None) else "there was no Redis server"
    if text and under_ci():
        raise PluginError(f"{path.name} is not executed: {text}")
    return text


def page(path: Path) -> str:
    """Return a notebook as Markdown, with the outputs it had when its job ran."""
    missing = lacking(path)
    source = path if missing else job(path).run()
    cells = json.loads(source.read_text(encoding="utf-8"))["cells"]
    parts = [part for cell in cells for part in rendered(cell)]
    note = [f'[Download this notebook]({path.name}){{ download="{path.name}" .nb-download }}']
    if missing:
        note.append(
            f'!!! warning "Without outputs"\n    This page was built where {missing}, so the'
            " notebook was not executed."
        )
    text = "\n\n".join([parts[0], *note, *parts[1:]]) + "\n"
    _check_paths(path, text)
    return text


def rendered(cell: Json) -> Iterator[str]:
    """Yield the parts of a page that show a cell."""
    source = "".join(cell["source"]).rstrip()
    if cell["cell_type"] == "markdown":
        yield relinked(source)
    elif source:
        fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", source))])
        yield f"{fence}ipython3\n{source}\n{fence}"
        outputs = [shown for output in joined(cell["outputs"]) if (shown := as_html(output))]
        if outputs:
            inner = "\n".join(outputs)
            yield f'<div class="nb-output" role="group" aria-label="Output">\n{inner}\n</div>'


def relinked(markdown: str) -> str:
    """Return Markdown whose links lead to pages of the site instead of files of the repository.

    >>> relinked("[a](../docs/how-to/x.md#y) [b](02_two.ipynb) [c](./03_three.ipynb#z) [d][abe.x]")
    '[a](../how-to/x.md#y) [b](02_two.md) [c](03_three.md#z) [d][abe.x]'
    """
    markdown = re.sub(r"\]\(\.\./docs/([^)\s]+)\)", r"](../\1)", markdown)
    return re.sub(r"\]\((?:\./)?([\w-]+)\.ipynb((?:#[^)\s]*)?)\)", r"](\1.md\2)", markdown)


def joined(outputs: Sequence[Json]) -> Sequence[Json]:
    """Return outputs in which neighbouring pieces of one stream are one."""
    found: list[dict[str, Any]] = []
    for output in outputs:
        last = found[-1] if found else {}
        if output["output_type"] == "stream" and last.get("name") == output["name"]:
            last["text"] += "".join(output["text"])
        elif output["output_type"] == "stream":
            found.append({**output, "text": "".join(output["text"])})
        else:
            found.append(dict(output))
    return found


def as_html(output: Json) -> str:
    """Return an output as HTML: its richest form, or text that cannot be anything else.

    >>> as_html({"output_type": "error", "ename": "ValueError", "evalue": "<no>"})
    '<pre class="nb-error">ValueError: &lt;no&gt;</pre>'
    >>> as_html({"output_type": "display_data", "data": {"text/plain": "x", "text/html": "<p>1"}})
    '<p>1'
    """
    kind = output["output_type"]
    if kind == "stream":
        return pre(overwritten(output["text"]), "nb-stderr" if output["name"] == "stderr" else "")
    if kind == "error":
        return pre(f"{output['ename']}: {output['evalue']}", "nb-error")
    data = output["data"]
    for rich in ("text/html", "image/svg+xml"):
        if rich in data:
            return compact("".join(data[rich]))
    plain = "".join(data.get("text/plain", ""))
    if "image/png" in data:
        source = f"data:image/png;base64,{''.join(data['image/png']).strip()}"
        return f'<img src="{source}" alt="{html.escape(plain)}">'
    return pre(plain)


def overwritten(text: str) -> str:
    r"""Return what a terminal shows of text in which carriage returns overwrite lines.

    >>> overwritten(" 1 %\r50 %\r100 %\n")
    '100 %\n'
    """
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))


def pre(text: str, kind: str = "") -> str:
    r"""Return text as a block; nothing in it is markup.

    >>> pre("\x1b[31m<b>\x1b[0m &\n", "nb-stderr")
    '<pre class="nb-stderr">&lt;b&gt; &amp;</pre>'
    """
    text = ANSI.sub("", text).strip("\n")
    if not text.strip():
        return ""
    attribute = f' class="{kind}"' if kind else ""
    return f"<pre{attribute}>{html.escape(text, quote=False)}</pre>"


def compact(markup: str) -> str:
    """Return markup that Markdown leaves alone, styled like the tables of the site."""
    markup = re.sub(r'\s(?:border="\d+"|class="dataframe")', "", markup)
    return re.sub(r"\n\s*\n", "\n", markup.strip())


def _check_paths(path: Path, text: str) -> None:
    for place in (ROOT, Path(sys.prefix), Path(sys.base_prefix)):
        if str(place) in text:
            line = next(line for line in text.splitlines() if str(place) in line)
            raise PluginError(f"{path.name} shows a path of this machine: {line.strip()[:200]}")
