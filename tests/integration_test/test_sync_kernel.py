"""The synchronous facade in a real kernel: interrupts, queued cells, output, shutdown."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ipykernel")
manager_module = pytest.importorskip("jupyter_client.manager")

LONG = 30.0
SOON = 5.0
_names = itertools.count()


class Kernel:
    """A kernel, and what it answers."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "stderr"
        # Not TCP: free ports are found by trying, which goes wrong when several tests do so.
        self._sockets = tempfile.TemporaryDirectory(prefix="abe")
        ip = f"{self._sockets.name}/s"
        self._manager = manager_module.KernelManager(transport="ipc", ip=ip)
        with self._log.open("w") as stderr:
            self._manager.start_kernel(cwd=str(folder), stderr=stderr)
        self.client = self._manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=LONG)

    def start(self, code: str) -> str:
        """Queue a cell and return the id of the request."""
        return str(self.client.execute(code))

    def finish(self, *requests: str) -> list[dict[str, Any]]:
        """Wait until all of these cells have ended; return their outputs, one dict for each."""
        outputs: dict[str, dict[str, Any]] = {r: {"text": "", "error": None} for r in requests}
        idle: set[str] = set()
        while idle != set(requests):
            message = self.client.get_iopub_msg(timeout=LONG)
            parent = message["parent_header"].get("msg_id")
            content = message["content"]
            if parent not in outputs:
                continue
            if message["msg_type"] == "stream":
                outputs[parent]["text"] += content["text"]
            elif message["msg_type"] == "error":
                outputs[parent]["error"] = content["ename"]
            elif content.get("execution_state") == "idle":
                idle.add(parent)
        return [outputs[request] for request in requests]

    def run(self, code: str) -> str:
        """Run a cell that must succeed; return what it printed."""
        (output,) = self.finish(self.start(code))
        assert output["error"] is None, output
        return str(output["text"])

    def wait_for_output(self, request: str) -> None:
        """Wait until a running cell prints something."""
        while True:
            message = self.client.get_iopub_msg(timeout=LONG)
            if (
                message["parent_header"].get("msg_id") == request
                and message["msg_type"] == "stream"
            ):
                return

    def output_of(self, request: str, text: str) -> None:
        """Wait for an output that belongs to an earlier cell."""
        printed = ""
        while text not in printed:
            message = self.client.get_iopub_msg(timeout=LONG)
            if message["msg_type"] == "stream":
                assert message["parent_header"]["msg_id"] == request
                printed += message["content"]["text"]

    def interrupt(self) -> None:
        """Press the stop button."""
        self._manager.interrupt_kernel()

    def shutdown(self) -> str:
        """Shut the kernel down as a front end does; return what it wrote to stderr."""
        self.client.shutdown()
        deadline = time.monotonic() + LONG
        while self._manager.is_alive():
            assert time.monotonic() < deadline
            time.sleep(0.05)  # the process is another one: there is nothing to await
        return self._log.read_text()

    def close(self) -> None:
        """End the kernel, whatever state it is in."""
        self.client.stop_channels()
        if self._manager.has_kernel:
            self._manager.shutdown_kernel(now=True)
        self._manager.cleanup_resources()
        self._sockets.cleanup()


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    """A kernel connected to a memory store of its own."""
    kernel = Kernel(tmp_path)
    name = f"kernel-{next(_names)}"
    kernel.run(
        f"import abe, asyncio\nq = abe.connect('memory', env={{'ABE_MEMORY_NAME': {name!r}}})"
    )
    yield kernel
    kernel.close()


WAITING = {
    "take": "print('waiting')\nq.take(timeout=None)",
    "consume": "print('waiting')\nfor m in q.consume(): print(m)",
    "in-an-async-cell": "await asyncio.sleep(0)\nprint('waiting')\nq.take(timeout=None)",
    "await": "s = q.aio.consume()\nprint('waiting')\nawait anext(s)",
    "async-for": "print('waiting')\nasync for m in q.aio.consume(): print(m)",
}


@pytest.mark.parametrize("code", WAITING.values(), ids=WAITING)
def test_the_stop_button_ends_a_waiting_cell(kernel: Kernel, code: str) -> None:
    """Soon, whatever the cell waits with; and the next cells find everything in order."""
    request = kernel.start(code)
    kernel.wait_for_output(request)
    time.sleep(0.3)  # let it block: a cell cannot print while it does
    started = time.monotonic()
    kernel.interrupt()
    (output,) = kernel.finish(request)
    assert time.monotonic() - started < SOON
    assert output["error"] in ("KeyboardInterrupt", "CancelledError")
    assert kernel.run("q.publish('orders', {'n': 1}); print(*q.take(timeout=30))").count("'n': 1")
    assert kernel.run("await q.aio.publish('orders', {'n': 2}); print(*q.take(timeout=30))").count(
        "'n': 2"
    )
    assert kernel.run("import signal; print(signal.getsignal(signal.SIGINT).__name__)")


def test_run_all_runs_all(kernel: Kernel) -> None:
    """Queued cells, blocking and awaiting by turns, also after nesting was enabled."""
    for prepare in ("pass", "abe.enable_nesting()"):
        requests = [
            kernel.start(code)
            for code in (
                prepare,
                "q.publish('orders', {'n': 1})",
                "await q.aio.publish('orders', {'n': 2})",
                "print(len(q.take(2, timeout=30)))",
                "q.publish_many([{'n': 3}, {'n': 4}], key='orders')",
                "async for m in q.aio.consume():\n    if m['n'] == 4: await m.ack(); break",
                "print(q.stats().entries)",
            )
        ]
        outputs = kernel.finish(*requests)
        assert [output["error"] for output in outputs] == [None] * 7
        assert [output["text"] for output in outputs] == ["", "", "", "2\n", "", "", "()\n"]


def test_a_workers_output_goes_to_the_cell_that_started_it(kernel: Kernel) -> None:
    """However many cells have run since."""
    request = kernel.start("w = q.worker(lambda m: print('handled', m['n']))")
    kernel.finish(request)
    kernel.run("1")
    kernel.start("q.publish('orders', {'n': 7})")
    kernel.output_of(request, "handled 7")
    kernel.run("w.stop()")


def test_a_kernel_shuts_down_without_a_word(kernel: Kernel) -> None:
    """With a worker, a stream in the middle, and connections never closed."""
    kernel.run(
        "it = q.consume(group='b').__enter__()\n"  # first, or nothing is retained for it
        "s = await q.aio.consume(group='c').__aenter__()\n"
        "w = q.worker(print, group='a')\n"
        "q.publish_many([{'n': n} for n in range(10)], key='orders')\n"
        "next(it)\nawait anext(s)\n"
        "other = abe.connect('memory')\nother.publish('orders', {})"
    )
    noise = kernel.shutdown()
    for word in ("Traceback", "Exception ignored", "was never", "unclosed", "destroyed"):
        assert word not in noise, noise
