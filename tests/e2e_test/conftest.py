"""A real kernel that runs this interpreter, out of reach of whatever else is installed."""

from __future__ import annotations

import json
import os
import queue
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager

KERNEL_NAME = "abe-test"
TIMEOUT = 30.0


def make_kernelspec(folder: Path) -> None:
    """Define a kernel that runs this interpreter."""
    spec = folder / "data" / "kernels" / KERNEL_NAME
    spec.mkdir(parents=True)
    launch = ["-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=ERROR"]
    argv = [sys.executable, "-Xfrozen_modules=off", *launch]
    (spec / "kernel.json").write_text(
        json.dumps({"argv": argv, "display_name": KERNEL_NAME, "language": "python"})
    )


def isolate(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Keep Jupyter's and IPython's files in ``folder``, and drop the caller's settings of abe."""
    for name in os.environ:
        if name.startswith(("ABE_", "JUPYTER", "IPYTHON")) or name == "QUEUE_BACKEND":
            patch.delenv(name)
    patch.setenv("IPYTHONDIR", str(folder / "ipython"))
    patch.setenv("JUPYTER_CONFIG_DIR", str(folder / "config"))
    patch.setenv("JUPYTER_DATA_DIR", str(folder / "data"))
    patch.setenv("JUPYTER_RUNTIME_DIR", str(folder / "runtime"))
    patch.setenv("JUPYTER_PLATFORM_DIRS", "1")


@dataclass
class Outcome:
    """What one cell did."""

    status: str = ""
    stdout: str = ""
    stderr: str = ""
    results: list[dict[str, Any]] = field(default_factory=list)
    ename: str = ""
    evalue: str = ""
    traceback: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The text form of the last value displayed."""
        return str(self.results[-1]["text/plain"])


class Kernel:
    """A running kernel."""

    def __init__(self, manager: KernelManager) -> None:
        self.manager = manager
        self.client = manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=TIMEOUT)

    def run(self, code: str) -> Outcome:
        """Run a cell to its end; nobody answers if it asks for input."""
        return self.run_all(code)[0]

    def run_answering(self, code: str, answer: str) -> tuple[Outcome, dict[str, Any]]:
        """Run a cell that asks for one input; return also what it asked."""
        started = self.client.execute(code, allow_stdin=True)
        question = self.client.get_stdin_msg(timeout=TIMEOUT)["content"]
        self.client.input(answer)
        return self._collect([started])[0], question

    def run_interrupting(self, code: str) -> Outcome:
        """Run a cell and interrupt it as soon as it has printed something."""
        started = self.client.execute(code, allow_stdin=False)
        return self._collect([started], interrupt=True)[0]

    def ok(self, code: str) -> Outcome:
        """Run a cell that must succeed."""
        outcome = self.run(code)
        assert outcome.status == "ok", "\n".join(outcome.traceback) or outcome.stderr
        return outcome

    def run_all(self, *cells: str) -> list[Outcome]:
        """Queue all cells at once, as "Run All" does, and wait for the last."""
        options = {"allow_stdin": False, "stop_on_error": False}
        return self._collect([self.client.execute(cell, **options) for cell in cells])

    def _collect(self, ids: list[str], *, interrupt: bool = False) -> list[Outcome]:
        outcomes = {i: Outcome() for i in ids}
        unfinished = set(ids)
        deadline = time.monotonic() + TIMEOUT
        while unfinished:
            try:
                message = self.client.get_iopub_msg(timeout=deadline - time.monotonic())
            except (queue.Empty, ValueError):
                pytest.fail(f"{len(unfinished)} of {len(ids)} cells did not end")
            parent = message["parent_header"].get("msg_id")
            if parent not in outcomes:
                continue
            kind, content = message["header"]["msg_type"], message["content"]
            self._note(outcomes[parent], kind, content)
            if kind == "stream" and interrupt:
                self.manager.interrupt_kernel()
                interrupt = False
            if kind == "status" and content["execution_state"] == "idle":
                unfinished.discard(parent)
        for _ in ids:
            reply = self.client.get_shell_msg(timeout=TIMEOUT)
            outcomes[reply["parent_header"]["msg_id"]].status = reply["content"]["status"]
        return [outcomes[i] for i in ids]

    @staticmethod
    def _note(outcome: Outcome, kind: str, content: dict[str, Any]) -> None:
        if kind == "stream":
            if content["name"] == "stdout":
                outcome.stdout += content["text"]
            else:
                outcome.stderr += content["text"]
        elif kind in ("execute_result", "display_data"):
            outcome.results.append(content["data"])
        elif kind == "error":
            outcome.ename, outcome.evalue = content["ename"], content["evalue"]
            outcome.traceback = content["traceback"]

    def stop(self) -> None:
        """End the kernel."""
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture(scope="module")
def jupyter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A private folder for Jupyter with a kernelspec for this interpreter."""
    folder = tmp_path_factory.mktemp("jupyter")
    make_kernelspec(folder)
    with pytest.MonkeyPatch.context() as patch:
        isolate(folder, patch)
        yield folder


@pytest.fixture(scope="module")
def new_kernel_manager(jupyter: Path) -> KernelManager:
    """A manager of a kernel that is not started yet."""
    specs = KernelSpecManager(kernel_dirs=[str(jupyter / "data" / "kernels")])
    return KernelManager(kernel_name=KERNEL_NAME, kernel_spec_manager=specs)


@pytest.fixture(scope="module")
def kernel(new_kernel_manager: KernelManager, jupyter: Path) -> Iterator[Kernel]:
    """A kernel that the tests of one module share."""
    new_kernel_manager.start_kernel(cwd=str(jupyter))
    running = Kernel(new_kernel_manager)
    yield running
    running.stop()
