"""The notebook toolkit in real kernels: Stop, queued cells, handlers, shutdown, nesters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import psutil  # type: ignore[import-untyped]
import pytest

import abe

if TYPE_CHECKING:
    from tests.e2e_test.conftest import Kernel

SOON = 5.0
"""Seconds for Stop on any machine; benchmarks/notebook.py measures the delay."""


@pytest.fixture
def cells(kernel: Kernel) -> Iterator[Kernel]:
    """A kernel whose session is connected to an empty store, as ``q``."""
    kernel.ok(f"%load_ext abe\nq = %abe_connect memory --env ABE_MEMORY_NAME=test-{uuid4().hex}")
    yield kernel
    kernel.ok("%unload_ext abe")


GO = "print('go', flush=True)\n"
WAITING = {
    "magic": f"{GO}%abe_consume -n 2 -t 60 -q 60",
    "facade beside await": f"import asyncio\nawait asyncio.sleep(0)\n{GO}q.take(2, timeout=60)",
    "magic beside await": f"await q.aio.ping()\n{GO}%abe_consume -n 2 -t 60 -q 60",
    "idle await": f"stream = q.aio.consume()\n{GO}await stream.take(2)",
    "idle async for": f"{GO}async for m in q.aio.consume('nothing'): pass",
    "iteration": f"{GO}for m in q.consume('nothing'): pass",
    "batch": f"{GO}with q.batch(2, timeout=60): pass",
    "worker": f"w = q.worker(print, keys='nothing')\n{GO}w.wait()",
}


@pytest.mark.parametrize("code", WAITING.values(), ids=WAITING)
def test_stop(cells: Kernel, code: str) -> None:
    cells.ok('%abe_publish k {"n": 1}')
    outcome = cells.run_interrupting(code)
    assert outcome.ename in ("KeyboardInterrupt", "CancelledError"), outcome
    assert outcome.took <= SOON
    cells.ok('%abe_publish k {"n": 2}')
    cells.ok("stream = None\ngot = %abe_consume -n 2 -t 20 -q 20")
    assert cells.ok("print([m['n'] for m in got])").stdout == "[1, 2]\n"


SLOW = """
import asyncio
class Slow:
    sent = []
    async def publish(self, key, payload):
        if not self.sent:
            print("go", flush=True)
        await asyncio.sleep(0.002)
        self.sent.append(payload["n"])
    async def consume(self, *, group=None):
        yield {}
slow = Slow()
orders = [{"n": n} for n in range(20_000)]
%abe_connect -i slow
"""


def test_stop_while_publishing_many(cells: Kernel) -> None:
    cells.ok(SLOW)
    outcome = cells.run_interrupting("%abe_publish k -i orders")
    assert outcome.ename == "KeyboardInterrupt"
    assert outcome.took <= SOON
    sent = cells.ok("print(len(slow.sent), slow.sent == list(range(len(slow.sent))))").stdout
    count, in_order = sent.split()
    assert in_order == "True"
    assert 0 < int(count) < 20_000
    assert f"interrupted: {int(count):,} of 20,000 are published\n" in outcome.stdout


def test_queued_cells_all_run(cells: Kernel) -> None:
    outcomes = cells.run_all(
        "%%abe_handler a.*\nasync def one(m):\n    await q.aio.publish('b', {'n': m['n'] + 1})",
        '%abe_publish a.x {"n": 1}',
        "got = %abe_consume b -g seen -n 1",
        "print([m['n'] for m in got])",
        "%abe_stop",
    )
    assert [outcome.status for outcome in outcomes] == ["ok"] * 5
    assert outcomes[3].stdout == "[2]\n"
    assert outcomes[4].stdout == "stopped one: 1 processed, 0 failed, 0 dead\n"


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_output_of_a_handler_goes_to_its_own_cell(cells: Kernel, kind: str) -> None:
    request = cells.start(
        f"%%abe_handler orders.*\n{kind} show(order):\n"
        "    from IPython.display import display\n"
        "    print(f'handled-{order[\"n\"]}', flush=True)\n"
        "    display({'text/plain': 'shown'}, raw=True)\n"
    )
    for n in range(3):
        cells.ok(f"print('another cell {n}')")
    cells.client.execute('%abe_publish orders.x {"n": 5}')
    missing: dict[str, Callable[[dict[str, Any]], bool]] = {
        "print": lambda content: "handled-5" in content.get("text", ""),
        "display": lambda content: plain(content) == "shown",
        "card": lambda content: "running  1 " in plain(content) and 'role="img"' in html(content),
    }
    parents: dict[str, str] = {}

    def all_found(message: dict[str, Any]) -> bool:
        for name, is_it in list(missing.items()):
            if is_it(message["content"]):
                del missing[name]
                parents[name] = message["parent_header"]["msg_id"]
        return not missing

    cells.outputs_until(all_found)
    # The card is updated from the portal and, for programs that look no further, by each cell.
    assert parents["print"] == parents["display"] == request
    cells.client.execute("%abe_stop")
    seen = cells.outputs_until(lambda m: "stopped  1 " in plain(m["content"]))
    assert seen[-1]["msg_type"] == "update_display_data"


def plain(content: dict[str, Any]) -> str:
    return str(content.get("data", {}).get("text/plain", ""))


def html(content: dict[str, Any]) -> str:
    return str(content.get("data", {}).get("text/html", ""))


def descendants(kernel: Kernel) -> list[psutil.Process]:
    provisioner: Any = kernel.manager.provisioner
    process = psutil.Process(provisioner.pid)
    return [process, *process.children(recursive=True)]


HANDLERS = {
    "idle": "%%abe_handler other\ndef work(m): pass",
    "async in flight": (
        "%%abe_handler\nimport asyncio\nasync def work(m):\n"
        "    print('in flight', flush=True)\n    await asyncio.Event().wait()"
    ),
    "sync in flight": (
        "%%abe_handler\nimport time\ndef work(m):\n"
        "    print('in flight', flush=True)\n    time.sleep(0.5)"
    ),
}


@pytest.mark.parametrize("end", ["shutdown", "restart"])
@pytest.mark.parametrize("handler", HANDLERS)
def test_nothing_is_left_when_the_kernel_ends(
    start_kernel: Callable[..., Kernel], tmp_path: Path, end: str, handler: str
) -> None:
    path = tmp_path / "queue.sqlite3"
    kernel = start_kernel()
    kernel.ok(f"%load_ext abe\nq = %abe_connect sqlite --env ABE_SQLITE_PATH={path}")
    kernel.ok("got = %abe_consume -t 0")
    kernel.start(HANDLERS[handler])
    if handler == "idle":
        kernel.ok('%abe_publish k {"n": 1}')
    else:
        kernel.client.execute('%abe_publish k {"n": 1}')
        kernel.outputs_until(lambda m: "in flight" in m["content"].get("text", ""))
    processes = descendants(kernel)
    if end == "restart":
        kernel.manager.restart_kernel(now=False)
        kernel.client.wait_for_ready(timeout=30)
        assert kernel.run("print(1)").stdout == "1\n"
    else:
        kernel.manager.shutdown_kernel(now=False)
    assert not psutil.wait_procs(processes, timeout=10)[1]
    with abe.connect("sqlite", env={"ABE_SQLITE_PATH": str(path)}) as queue:
        stats = queue.stats()
        assert stats.total("in_flight") == 0
        gone = handler == "sync in flight"
        left = queue.take(1, timeout=0 if gone else 20)
    assert [m.attempt for m in left] == ([] if gone else [1])


NESTERS = {
    "nest-asyncio": "import nest_asyncio; nest_asyncio.apply()",
    "nest-asyncio2": "import nest_asyncio2; nest_asyncio2.apply()",
    "enable_nesting": "import abe; abe.enable_nesting()",
}
NESTED = """
import asyncio
async def both():
    await q.aio.publish('k', {'n': 2})
    return [m['n'] for m in await q.aio.peek()]
print(asyncio.run(both()))
"""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("nester", NESTERS)
def test_the_user_nests(start_kernel: Callable[..., Kernel], nester: str, when: str) -> None:
    kernel = start_kernel()
    if when == "before":
        kernel.ok(NESTERS[nester])
    kernel.ok("%load_ext abe\nq = %abe_connect memory")
    if when == "after":
        kernel.ok(NESTERS[nester])
    kernel.ok('%abe_publish k {"n": 1}')
    assert kernel.ok(NESTED).stdout == "[1, 2]\n"
    kernel.ok("await q.aio.publish('k', {'n': 3})")
    got = kernel.ok("got = %abe_consume -n 3\nprint([m['n'] for m in got])")
    assert got.stdout.splitlines()[-1] == "[1, 2, 3]"
    outcome = kernel.run_interrupting(WAITING["magic"])
    assert outcome.ename == "KeyboardInterrupt"
    assert outcome.took <= SOON
    kernel.ok("%%abe_handler\ndef work(m): pass")
    assert kernel.ok("%abe_publish k {}\n%unload_ext abe").status == "ok"
    kernel.stop()


def test_a_kernel_on_uvloop(start_kernel: Callable[..., Kernel]) -> None:
    kernel = start_kernel("abe-test-uvloop")
    loop = kernel.ok("import asyncio\nprint(type(asyncio.get_running_loop()).__module__)")
    assert loop.stdout == "uvloop\n"
    kernel.ok("%load_ext abe\nq = %abe_connect memory")
    outcomes = kernel.run_all(
        '%abe_publish k {"n": 1}',
        "await q.aio.publish('k', {'n': 2})",
        "got = %abe_consume -n 2",
        "print([m['n'] for m in got])",
    )
    assert outcomes[-1].stdout == "[1, 2]\n"
    for code in ("magic", "idle await"):
        outcome = kernel.run_interrupting(WAITING[code])
        assert outcome.ename in ("KeyboardInterrupt", "CancelledError")
        assert outcome.took <= SOON
    refused = kernel.run("import abe; abe.enable_nesting()")
    assert refused.ename == "UnsupportedError"
    assert "uvloop" in refused.evalue
    kernel.stop()


def test_completion_in_a_kernel(cells: Kernel) -> None:
    def complete(code: str) -> list[str]:
        cells.client.complete(code, len(code))
        content = cells.client.get_shell_msg(timeout=10)["content"]
        assert content["status"] == "ok"
        return list(content["matches"])

    cells.ok('%abe_publish orders.created {"n": 1}')
    assert "memory" in complete("q = %abe_connect mem")
    assert complete("%abe_consume ord") == ["orders.created"]
    assert "--timeout" in complete("%abe_consume --ti")
    assert "%abe_peek" in complete("%abe_pe")
