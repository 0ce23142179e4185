"""The magics in a plain IPython terminal."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pexpect = pytest.importorskip("pexpect", reason="there are no pseudo-terminals here")

PROMPT = r"In \[\d+\]:"
OPTIONS = ["--no-banner", "--no-confirm-exit", "--colors=NoColor", "--HistoryManager.enabled=False"]


class Terminal:
    """An IPython in a pseudo-terminal."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.child: Any = pexpect.spawn(
            sys.executable,
            ["-m", "IPython", *OPTIONS, *options],
            env={
                "PATH": "/usr/bin:/bin",
                "HOME": str(folder),
                "IPYTHONDIR": str(folder),
                "TERM": "xterm",
                "PROMPT_TOOLKIT_NO_CPR": "1",
                "LANG": "C.UTF-8",
            },
            cwd=str(folder),
            encoding="utf-8",
            timeout=30,
            dimensions=(50, 160),
        )
        self.child.expect(PROMPT)

    def run(self, line: str) -> str:
        """Run a line and return what it printed."""
        self.child.sendline(line)
        self.child.expect(PROMPT)
        text: str = self.child.before
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\r", "", text).replace(line, "", 1).strip()


@pytest.fixture
def simple(tmp_path: Path) -> Iterator[Terminal]:
    terminal = Terminal(tmp_path, "--simple-prompt")
    terminal.run("%load_ext abe")
    terminal.run("q = %abe_connect memory")
    yield terminal
    terminal.child.close(force=True)


def test_text_tables(simple: Terminal) -> None:
    shown = simple.run('%abe_publish orders.created [{"id": 1}, {"id": "\\u001b[31m<b>"}]')
    assert "published 2 messages to orders.created on memory" in shown
    table = simple.run("%abe_consume -n 2 -g billing").splitlines()
    assert table[0] == "acked 2 messages from memory, group billing"
    assert '1  orders.created  {"id": "\\u001b[31m<b>"}' in "\n".join(table)
    simple.run('%abe_publish orders.paid {"id": 3}')
    assert re.search(r"orders\.paid +billing +1 +0 +0 +0", simple.run("%abe_stats"))


def test_ctrl_c(simple: Terminal) -> None:
    simple.run('%abe_publish k {"n": 1}')
    simple.child.sendline(
        "print('w' + 'aiting', flush=True); got = get_ipython().run_line_magic("
        "'abe_consume', '-n 2 -t 60 -q 60')"
    )
    simple.child.expect("waiting")
    simple.child.sendintr()
    simple.child.expect("KeyboardInterrupt")
    simple.child.expect(PROMPT)
    simple.run('%abe_publish k {"n": 2}')
    simple.run("got = %abe_consume -n 2 -t 20 -q 20")
    assert simple.run("print([m['n'] for m in got])") == "[1, 2]"


def test_a_handler(simple: Terminal) -> None:
    simple.run("import queue; seen = queue.Queue()")
    simple.run(
        "get_ipython().run_cell_magic('abe_handler', 'orders.*', 'def bill(m): seen.put(dict(m))')"
    )
    simple.run('%abe_publish orders.x {"n": 5}')
    assert simple.run("print(seen.get(timeout=20))") == "{'n': 5}"
    assert "bill     on memory, the default group, orders.*  running" in simple.run("%abe_handlers")
    assert simple.run("%abe_stop") == "stopped bill: 1 processed, 0 failed, 0 dead"


def test_leaving_with_a_handler_running(simple: Terminal) -> None:
    simple.run("get_ipython().run_cell_magic('abe_handler', '', 'def bill(m): pass')")
    simple.child.sendline("exit")
    simple.child.expect(pexpect.EOF)
    simple.child.wait()
    assert simple.child.exitstatus == 0
    assert "Traceback" not in simple.child.before


def test_completion(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path)
    terminal.run("%load_ext abe")
    terminal.child.send("q = %abe_connect mem\t")
    terminal.child.expect("ory")
    terminal.child.send("\r")
    terminal.child.expect(PROMPT)
    terminal.child.sendline("q.name.upper()")
    terminal.child.expect("MEMORY")
    terminal.child.close(force=True)
