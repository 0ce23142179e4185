"""Background handlers in a shell inside this process; real kernels are tested in tests/e2e_test."""

from __future__ import annotations

import _thread
import logging
import queue
import re
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from IPython.core.displaypub import DisplayPublisher
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell

import abe
from abe.ipython import handlers
from abe.sync import Worker

Run = Callable[..., Any]
Seen = queue.Queue[Any]
PATIENCE = 10.0


@pytest.fixture
def seen(shell: InteractiveShell, q: abe.SyncBackend) -> Seen:
    """What handlers put into ``seen``."""
    made: Seen = queue.Queue()
    shell.user_ns["seen"] = made
    return made


SYNC = "def bill(order):\n    seen.put((order.key, dict(order)))\n"
ASYNC = f"async {SYNC}"


@pytest.mark.parametrize("function", [SYNC, ASYNC], ids=["sync", "async"])
def test_a_handler(
    run: Run, q: abe.SyncBackend, seen: Seen, function: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(f"%%abe_handler orders.* -g billing --concurrency 2 -o worker\n{function}") is None
    out = capsys.readouterr().out
    assert out == (
        "handler bill on memory, group billing, orders.*: running."
        " %abe_handlers shows its counters\n"
    )
    q.publish_many([("orders.a", {"n": 1}), ("other", {"n": 2}), ("orders.b", {"n": 3})])
    assert sorted(seen.get(timeout=PATIENCE) for _ in range(2)) == [
        ("orders.a", {"n": 1}),
        ("orders.b", {"n": 3}),
    ]
    listed = run("%abe_handlers")
    assert [h.name for h in listed] == ["bill"]
    assert listed[0].worker is run("worker")
    assert "bill     on memory, group billing, orders.*  running" in repr(listed)
    capsys.readouterr()
    run("%abe_stop")
    assert capsys.readouterr().out == "stopped bill: 2 processed, 0 failed, 0 dead\n"
    assert not run("worker").running
    assert run("%abe_handlers") == []
    run("%abe_stop")
    assert capsys.readouterr().out.endswith("no handler is running\n")


def test_running_it_again_replaces_it(run: Run, q: abe.SyncBackend, seen: Seen) -> None:
    run(f"%%abe_handler -o first\n{SYNC}")
    run("%%abe_handler -o second\ndef bill(order):\n    seen.put('second')\n")
    assert not run("first").running
    assert [h.worker for h in run("%abe_handlers")] == [run("second")]
    q.publish("k", {})
    assert seen.get(timeout=PATIENCE) == "second"
    run(f"%%abe_handler --name other\n{SYNC}")
    assert [h.name for h in run("%abe_handlers")] == ["bill", "other"]


def test_replacing_one_that_listens_elsewhere_is_said(
    run: Run, q: abe.SyncBackend, seen: Seen, capsys: pytest.CaptureFixture[str]
) -> None:
    run(f"%%abe_handler orders.* -g billing\n{SYNC}")
    run(f"%%abe_handler orders.* -g billing\n{SYNC}")
    assert "replaces" not in capsys.readouterr().out
    run(f"%%abe_handler payments.* -g paying\n{SYNC}")
    said = "this replaces handler bill on memory, group billing, orders.*; with --name N both"
    assert said in capsys.readouterr().out
    assert len(run("%abe_handlers")) == 1


def test_a_cell_that_is_wrong_leaves_the_old_one_alone(
    run: Run, q: abe.SyncBackend, seen: Seen
) -> None:
    run(f"%%abe_handler\n{SYNC}")
    for cell, error in [
        ("%%abe_handler --conc 0\n" + SYNC, UsageError),
        ("%%abe_handler a..b\n" + SYNC, abe.InvalidKeyError),
        ('%%abe_handler -g "a b"\n' + SYNC, abe.InvalidKeyError),
        ("%%abe_handler\nx = 1\n", UsageError),
        ("%%abe_handler\ndef bill(order, more):\n    pass\n", UsageError),
        ("%%abe_handler\ndef bill():\n    pass\n", UsageError),
        ("%%abe_handler\ndef bill(order):\n    yield\n", UsageError),
        ("%%abe_handler\ndef bill(order:\n", SyntaxError),
        ("%%abe_handler\ndef bill(order): ...\n1 / 0\n", ZeroDivisionError),
    ]:
        with pytest.raises(error):
            run(cell)
    q.publish("k", {"n": 1})
    assert seen.get(timeout=PATIENCE) == ("k", {"n": 1})


def test_the_cell_is_an_ordinary_cell(run: Run, q: abe.SyncBackend, seen: Seen) -> None:
    run(
        "%%abe_handler --max-attempts 1\n"
        "import json\n"
        "where = %pwd\n"
        "def helper(order):\n"
        "    return json.dumps(order)\n"
        "def bill(order):\n"
        "    seen.put(helper(order))\n"
    )
    assert run("where")
    q.publish("k", {"n": 1})
    assert seen.get(timeout=PATIENCE) == '{"n": 1}'


def test_failures(
    run: Run, q: abe.SyncBackend, seen: Seen, capsys: pytest.CaptureFixture[str]
) -> None:
    run(
        "%%abe_handler --max-attempts 1\n"
        "def bill(order):\n"
        "    seen.put(order['n'])\n"
        "    raise ValueError(f'no {order}')\n"
    )
    q.publish_many([{"n": n} for n in range(3)], key="k")
    for _ in range(3):
        seen.get(timeout=PATIENCE)
    capsys.readouterr()
    run("%abe_stop bill")
    assert capsys.readouterr().out == "stopped bill: 0 processed, 3 failed, 3 dead\n"
    dead = run("%abe_dead")
    assert [m["n"] for m in dead] == [0, 1, 2]
    assert "ValueError: no SyncMessage" in repr(dead)


def test_the_notebook_is_not_flooded_with_tracebacks(
    run: Run, q: abe.SyncBackend, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed: list[str] = []

    class LastResort(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            printed.append(record.getMessage())

    monkeypatch.setattr(logging, "lastResort", LastResort(logging.WARNING))
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    run("%%abe_handler --max-attempts 1\ndef bill(order):\n    seen.put(1)\n    raise ValueError\n")
    q.publish_many([{}] * 20, key="k")
    for _ in range(20):
        seen.get(timeout=PATIENCE)
    run("%abe_stop")
    failures = [text for text in printed if text.startswith("handler failed")]
    assert len(failures) == handlers.MAX_REPORTS
    assert failures[-1].endswith("further failures of this handler are counted, not printed")
    before = list(handlers._logger.filters)
    run("%unload_ext abe")
    assert len(handlers._logger.filters) == len(before) - 1


def test_connecting_says_which_handlers_it_stops(
    run: Run, q: abe.SyncBackend, seen: Seen, capsys: pytest.CaptureFixture[str]
) -> None:
    run(f"%%abe_handler\n{SYNC}")
    capsys.readouterr()
    run("q = %abe_connect memory")
    assert capsys.readouterr().out == "stopped bill: 0 processed, 0 failed, 0 dead\n"


@pytest.mark.parametrize("end", ["%unload_ext abe", "%abe_connect memory", "q.close()"])
def test_what_ends_a_handler(run: Run, q: abe.SyncBackend, seen: Seen, end: str) -> None:
    run(f"%%abe_handler -o worker\n{SYNC}")
    q.publish("k", {"n": 1})
    seen.get(timeout=PATIENCE)
    worker = run("worker")
    run(end)
    assert worker.wait(PATIENCE)
    assert worker.error is None
    assert worker.in_flight == 0


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Interrupt who waits for a worker to end, as soon as it waits."""
    drain = Worker.drain

    async def interrupting(worker: Worker) -> None:
        _thread.interrupt_main()
        await drain(worker)

    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(Worker, "drain", interrupting)
    yield
    signal.signal(signal.SIGINT, previous)


BUSY = "def bill(order):\n    seen.put(1)\n    finish.wait()\n"


def test_an_interrupt_while_unloading(
    shell: InteractiveShell, run: Run, q: abe.SyncBackend, seen: Seen, interrupted: None
) -> None:
    """Everything is gone, and closes in the background; the extension can be loaded again."""
    shell.user_ns["finish"] = finish = threading.Event()
    run(f"%%abe_handler -o worker\n{BUSY}")
    q.publish("k", {"n": 1})
    seen.get(timeout=PATIENCE)
    with pytest.raises(KeyboardInterrupt):
        run("%unload_ext abe")
    worker = run("worker")
    assert worker.running
    run("%load_ext abe")
    assert run("%abe_handlers") == []
    finish.set()
    assert worker.wait(PATIENCE)
    q.close()
    assert (worker.processed, q.closed) == (1, True)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("", "which one? There are bill, pay; --all stops all"),
        ("bil", "no handler is called bil; did you mean bill?"),
        ("zzz", "no handler is called zzz; there are bill, pay"),
        ("bill --all", "give either names or --all"),
    ],
)
def test_stopping_the_wrong_one(
    run: Run, q: abe.SyncBackend, seen: Seen, line: str, problem: str
) -> None:
    run(f"%%abe_handler\n{SYNC}")
    run(f"%%abe_handler --name pay\n{SYNC}")
    with pytest.raises(UsageError, match=re.escape(problem)):
        run(f"%abe_stop {line}")
    assert len(run("%abe_handlers")) == 2
    run("%abe_stop --all")
    assert run("%abe_handlers") == []


class Publisher(DisplayPublisher):
    """Keeps what is displayed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sent: queue.Queue[tuple[str, dict[str, str]]] = queue.Queue()

    def publish(self, data: Any, *args: Any, transient: Any = None, **more: Any) -> None:
        self.sent.put(((transient or {}).get("display_id", ""), data))

    def until(self, text: str) -> dict[str, str]:
        """Return the first display whose text contains ``text``."""
        while True:
            data = self.sent.get(timeout=PATIENCE)[1]
            if text in data["text/plain"]:
                return data


@pytest.fixture
def notebook(shell: InteractiveShell, monkeypatch: pytest.MonkeyPatch) -> Publisher:
    """Let the shell look like a notebook's."""
    publisher = Publisher()
    monkeypatch.setattr(shell, "display_pub", publisher)
    monkeypatch.setattr(shell, "kernel", object(), raising=False)
    return publisher


def test_the_card_follows_the_handler(
    run: Run, q: abe.SyncBackend, seen: Seen, notebook: Publisher
) -> None:
    run("%config AbeMagics.refresh = 0.1")
    run(
        "%%abe_handler -a 1\n"
        "def bill(order):\n"
        "    if order['n'] == 2:\n"
        "        raise ValueError('<b>two</b> redis://u:hunter2@h')\n"
    )
    notebook.until("starting")
    notebook.until("running")
    q.publish_many([{"n": n} for n in range(4)], key="k")
    data = notebook.until("running  3          1       0        1     0")
    assert "last error: ValueError: <b>two</b> redis://***@h" in data["text/plain"]
    assert "&lt;b&gt;two" in data["text/html"]
    assert 'role="img" aria-label="Messages per second over the last' in data["text/html"]
    run("%abe_stop")
    notebook.until("stopped  3          1       0        1     0")
    while not notebook.sent.empty():
        assert notebook.sent.get()[0]
    run("%unload_ext abe")
    assert notebook.sent.empty()


def test_the_card_goes_on_when_stopping_is_interrupted(
    shell: InteractiveShell,
    run: Run,
    q: abe.SyncBackend,
    seen: Seen,
    notebook: Publisher,
    interrupted: None,
) -> None:
    shell.user_ns["finish"] = finish = threading.Event()
    run(f"%%abe_handler\n{BUSY}")
    q.publish("k", {"n": 1})
    seen.get(timeout=PATIENCE)
    with pytest.raises(KeyboardInterrupt):
        run("%abe_stop")
    finish.set()
    notebook.until("stopped  1 ")


def test_the_card_of_a_handler_that_stops_itself(
    run: Run, q: abe.SyncBackend, seen: Seen, notebook: Publisher
) -> None:
    run("%%abe_handler\ndef bill(m):\n    get_ipython().run_line_magic('abe_stop', 'bill')\n")
    q.publish("k", {"n": 1})
    notebook.until("stopped  1 ")


def test_the_card_of_a_handler_that_cannot_start(
    shell: InteractiveShell, run: Run, notebook: Publisher
) -> None:
    class Minimal:
        async def publish(self, key: str, payload: Any) -> None: ...

        async def consume(self, *, group: str | None = None) -> Any: ...

    shell.user_ns["minimal"] = Minimal()
    run("%abe_connect -i minimal")
    with pytest.raises(abe.UnsupportedError):
        run(f"%%abe_handler orders.*\n{SYNC}")
    notebook.until("not started")
    assert run("%abe_handlers") == []


def test_a_handler_that_has_failed_for_good(
    shell: InteractiveShell, run: Run, notebook: Publisher
) -> None:
    class Refusing:
        async def publish(self, key: str, payload: Any) -> None: ...

        async def consume(self, *, group: str | None = None) -> Any:
            raise abe.ConfigurationError("no such queue")

    shell.user_ns["refusing"] = Refusing()
    run("%abe_connect -i refusing")
    run(f"%%abe_handler\n{SYNC}")
    shown = notebook.until("\nfailed ")
    assert "last error: ConfigurationError: no such queue" in shown["text/plain"]
    assert "failed" in repr(run("%abe_handlers"))
    run("%abe_stop")
    assert run("%abe_handlers") == []
