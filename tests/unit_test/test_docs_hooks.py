"""What the documentation is made with: notebooks as pages, the recorded results of the contract."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from abe import list_backends
from abe.testing import list_cases
from abe.testing.requirements import unmet

ROOT = Path(__file__).resolve().parents[2]
HOOKS = ROOT / "docs" / ".hooks"
NAMES = ("jobs", "llms", "matrix", "notebooks", "reference")
RENEW = "docs/results is out of date: run nox -s matrix"


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    pytest.importorskip("mkdocs", reason="mkdocs, which the hooks are for, is not installed")
    monkeypatch.syspath_prepend(str(HOOKS))
    yield {name: importlib.import_module(name) for name in NAMES}
    for name in NAMES:
        sys.modules.pop(name, None)


def cell(source: str, *outputs: dict[str, Any], kind: str = "code") -> dict[str, Any]:
    return {"cell_type": kind, "source": source, "outputs": list(outputs)}


def stream(text: str, name: str = "stdout") -> dict[str, Any]:
    return {"output_type": "stream", "name": name, "text": text}


def data(**forms: str) -> dict[str, Any]:
    found = {name.replace("_", "/"): text for name, text in forms.items()}
    return {"output_type": "display_data", "data": found}


class TestNotebooks:
    @pytest.fixture
    def notebooks(self, hooks: dict[str, ModuleType]) -> ModuleType:
        return hooks["notebooks"]

    def outputs(self, notebooks: ModuleType, *outputs: dict[str, Any]) -> str:
        _, shown = notebooks.rendered(cell("x", *outputs))
        return str(shown)

    def test_links_lead_to_pages(self, notebooks: ModuleType) -> None:
        source = "[a](../docs/how-to/x.md#y) [b](02_two.ipynb) [c](./03_three.ipynb#z) [d][abe.x]"
        (page,) = notebooks.rendered(cell(source, kind="markdown"))
        assert page == "[a](../how-to/x.md#y) [b](02_two.md) [c](03_three.md#z) [d][abe.x]"

    def test_a_fence_is_longer_than_those_inside(self, notebooks: ModuleType) -> None:
        (page,) = notebooks.rendered(cell('"""\n```\n"""'))
        assert page.startswith("````ipython3\n")
        assert page.endswith("\n````")

    def test_text_is_no_markup(self, notebooks: ModuleType) -> None:
        assert "<pre>&lt;b&gt; &amp;</pre>" in self.outputs(notebooks, stream("<b> &\n"))
        assert "<pre>red</pre>" in self.outputs(notebooks, stream("\x1b[31mred\x1b[0m"))

    def test_pieces_of_a_stream_are_one(self, notebooks: ModuleType) -> None:
        shown = self.outputs(notebooks, stream("a"), stream("b\n"), stream("c", "stderr"))
        assert "<pre>ab</pre>" in shown
        assert '<pre class="nb-stderr">c</pre>' in shown

    def test_progress_shows_its_end(self, notebooks: ModuleType) -> None:
        assert "<pre>100 %</pre>" in self.outputs(notebooks, stream(" 1 %\r50 %\r100 %\n"))

    def test_an_error_is_one_line(self, notebooks: ModuleType) -> None:
        error = {"output_type": "error", "ename": "ValueError", "evalue": "<no>", "traceback": "x"}
        expected = '<pre class="nb-error">ValueError: &lt;no&gt;</pre>'
        assert expected in self.outputs(notebooks, error)

    def test_the_richest_form_is_shown(self, notebooks: ModuleType) -> None:
        shown = self.outputs(notebooks, data(text_plain="plain", text_html="<p>rich</p>\n\n<p>2"))
        assert "plain" not in shown
        assert "<p>rich</p>\n<p>2" in shown

    def test_places_on_this_machine_are_refused(
        self, notebooks: ModuleType, hooks: dict[str, ModuleType]
    ) -> None:
        with pytest.raises(Exception, match=r"x.ipynb shows a path of this machine: in .*abe"):
            notebooks._check_paths(Path("x.ipynb"), f"fine\nin {hooks['jobs'].ROOT}/abe")

    @pytest.mark.timeout(180)
    def test_a_failing_cell_is_named(self, hooks: dict[str, ModuleType], tmp_path: Path) -> None:
        source = tmp_path / "broken.ipynb"
        cells = [
            {"cell_type": "code", "id": id_, "source": text, "outputs": [], "metadata": {}}
            | {"execution_count": None}
            for id_, text in (("a", "x = 0"), ("b", "1 / x\n"))
        ]
        source.write_text(
            json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
        )
        command = [sys.executable, "-m", "scripts.execute", str(source), str(tmp_path / "out")]
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=150, check=False
        )
        assert done.returncode == 1
        told = done.stderr.splitlines()[-1]
        assert told == "broken.ipynb: cell 2 (1 / x) raised ZeroDivisionError: division by zero"
        assert not (tmp_path / "out").exists()


def test_a_result_is_kept_until_something_changes(
    hooks: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = hooks["jobs"]
    monkeypatch.setattr(jobs, "ROOT", tmp_path)
    monkeypatch.setattr(jobs, "KEPT", tmp_path / "kept")
    (tmp_path / "abe").mkdir()
    library, given, log = (tmp_path / name for name in ("abe/x.py", "given", "log"))
    library.write_text("1")
    given.write_text("1")
    program = f"import sys; open({str(log)!r}, 'a').write('x'); open(sys.argv[1], 'w')"
    job = jobs.Job("name", ["-c", program, "{result}"], [given])
    assert job.run() == job.run()
    assert log.read_text() == "x"
    given.write_text("2")
    job.run()
    library.write_text("2")
    job.run()
    assert log.read_text() == "xxx"
    failing = jobs.Job("name", ["-c", "raise SystemExit('so it is')"], [given, library])
    with pytest.raises(Exception, match="name: so it is"):
        failing.run()


def test_tables_hold_any_text(hooks: dict[str, ModuleType]) -> None:
    reference = hooks["reference"]
    row = [reference.code("a|`b`"), reference.literal("<c>_d_")]
    assert reference.table(["x"], [row]).splitlines()[-1] == "| `` a\\|`b` `` | \\<c\\>\\_d\\_ |"


class TestLanguageModels:
    @pytest.fixture
    def llms(self, hooks: dict[str, ModuleType]) -> ModuleType:
        return hooks["llms"]

    def test_a_page_is_described_by_its_first_sentence(self, llms: ModuleType) -> None:
        page = "<h1>T</h1>\n<p><code>abe</code> has\n<a href='x'>a &lt;b&gt;</a>: c. M.</p>"
        assert llms.describe(page) == "abe has a <b>: c."
        assert llms.describe("<h1>T</h1>") == ""

    @pytest.mark.parametrize("site", ["", "https://example.org/docs/"])
    def test_links_are_those_of_the_site(self, llms: ModuleType, site: str) -> None:
        page = '<a class="x" href="../../api/#abe">a</a> <a href="#b">b</a> <a href="../..">c</a>'
        text = llms.as_markdown(page, f"{site}how-to/redis/")
        assert text == f"[a]({site}api/#abe) [b]({site}how-to/redis/#b) [c]({site or './'})"

    def test_code_keeps_its_language_and_headings_lose_their_mark(self, llms: ModuleType) -> None:
        page = (
            '<h2>T <a href="#t" class="headerlink" title="Link">&para;</a></h2>'
            '<div class="language-python highlight"><pre><code>x = 1\n</code></pre></div>'
        )
        assert llms.as_markdown(page, "x/") == "## T\n\n```python\nx = 1\n```"


def test_every_setting_of_the_magics_is_listed(hooks: dict[str, ModuleType]) -> None:
    table = hooks["reference"].settings()
    assert "| `AbeMagics.limit` | Most messages" in table
    assert "| `10` |" in table


class TestMatrix:
    @pytest.fixture
    def columns(self, hooks: dict[str, ModuleType]) -> list[Any]:
        return list(hooks["matrix"].columns())

    def test_every_backend_has_a_column(self, columns: list[Any]) -> None:
        shown = {column.title.partition(" ")[0].strip("`") for column in columns}
        found = list_backends()
        ours = {it.name for it in found if str(it.distribution).startswith(("abe-", "abstract-"))}
        assert shown == ours, RENEW

    def test_every_case_that_applies_has_passed_or_lacked_a_hook(self, columns: list[Any]) -> None:
        for column in columns:
            assert {*column.passed, *column.skipped} == {it.id for it in list_cases()}, RENEW
            applying = {it.id for it in list_cases() if not unmet(it.needs, column.declared, True)}
            assert column.passed <= applying, (column.title, RENEW)
            for name in applying - column.passed:
                assert "harness" in column.skipped[name], (column.title, name, RENEW)
            assert len(column.passed) > 80
