"""A real kernel that runs this interpreter, out of reach of whatever else is installed."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager

KERNEL_NAME = "abe-test"
TIMEOUT = 30.0


UVLOOP = (
    "import asyncio, uvloop, warnings; warnings.simplefilter('ignore');"
    "asyncio.set_event_loop_policy(uvloop.EventLoopPolicy());"
    "from ipykernel.kernelapp import launch_new_instance; launch_new_instance()"
)


def make_kernelspec(folder: Path) -> None:
    """Define kernels that run this interpreter: an ordinary one, and one on uvloop."""
    launchers = {KERNEL_NAME: ["-m", "ipykernel_launcher"], f"{KERNEL_NAME}-uvloop": ["-c", UVLOOP]}
    for name, launch in launchers.items():
        spec = folder / "data" / "kernels" / name
        spec.mkdir(parents=True)
        argv = [sys.executable, "-Xfrozen_modules=off", *launch]
        argv += ["-f", "{connection_file}", "--log-level=ERROR"]
        (spec / "kernel.json").write_text(
            json.dumps({"argv": argv, "display_name": name, "language": "python"})
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
    displays: list[dict[str, Any]] = field(default_factory=list)
    took: float = 0.0
    """Seconds from the interrupt, if there was one, to the end of the cell."""

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

    def outputs_until(self, found: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
        """Return what the kernel sends until a message for which ``found`` says so."""
        seen: list[dict[str, Any]] = []
        deadline = time.monotonic() + TIMEOUT
        while not (seen and found(seen[-1])):
            try:
                seen.append(self.client.get_iopub_msg(timeout=deadline - time.monotonic()))
            except (queue.Empty, ValueError):
                pytest.fail(f"not found in {len(seen)} messages")
        return seen

    def start(self, code: str) -> str:
        """Run a cell to its end and return the id of its request."""
        request = str(self.client.execute(code, allow_stdin=False))
        outcome = self._collect([request])[0]
        assert outcome.status == "ok", "\n".join(outcome.traceback) or outcome.stderr
        return request

    def run_all(self, *cells: str) -> list[Outcome]:
        """Queue all cells at once, as "Run All" does, and wait for the last."""
        options = {"allow_stdin": False, "stop_on_error": False}
        return self._collect([self.client.execute(cell, **options) for cell in cells])

    def _collect(self, ids: list[str], *, interrupt: bool = False) -> list[Outcome]:
        outcomes = {i: Outcome() for i in ids}
        unfinished = set(ids)
        deadline = time.monotonic() + TIMEOUT
        interrupted = 0.0
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
                interrupt, interrupted = False, time.monotonic()
            if kind == "status" and content["execution_state"] == "idle":
                unfinished.discard(parent)
                outcomes[parent].took = time.monotonic() - interrupted
        while not all(outcome.status for outcome in outcomes.values()):
            reply = self.client.get_shell_msg(timeout=TIMEOUT)
            request = reply["parent_header"].get("msg_id")
            if request in outcomes:
                outcomes[request].status = reply["content"]["status"]
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
            outcome.displays.append(content)
        elif kind == "update_display_data":
            outcome.displays.append(content)
        elif kind == "error":
            outcome.ename, outcome.evalue = content["ename"], content["evalue"]
            outcome.traceback = content["traceback"]

    def stop(self) -> None:
        """End the kernel, if it has not ended."""
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
def start_kernel(jupyter: Path) -> Iterator[Callable[..., Kernel]]:
    """Start kernels, which are ended with the module."""
    specs = KernelSpecManager(kernel_dirs=[str(jupyter / "data" / "kernels")])
    started: list[Kernel] = []

    def start(name: str = KERNEL_NAME) -> Kernel:
        manager = KernelManager(kernel_name=name, kernel_spec_manager=specs)
        manager.start_kernel(cwd=str(jupyter))
        started.append(Kernel(manager))
        return started[-1]

    yield start
    for kernel in started:
        kernel.stop()


@pytest.fixture(scope="module")
def kernel(start_kernel: Callable[..., Kernel]) -> Kernel:
    """A kernel that the tests of one module share."""
    return start_kernel()


@dataclass
class Site:
    """The built documentation, served on the loopback."""

    root: Path
    folder: Path
    url: str
    log: str

    def html(self) -> list[Path]:
        """Return its pages."""
        return sorted(self.folder.rglob("*.html"))


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The documentation, built strictly; notebooks and contracts run only if something changed."""
    if find_spec("mkdocs") is None or find_spec("playwright") is None:
        pytest.skip("the group docs is not installed; `nox -s site` looks at the documentation")
    root = Path(__file__).resolve().parents[2]
    folder = tmp_path_factory.mktemp("site")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder))) as server:
        url = f"http://127.0.0.1:{server.server_port}/"
        env = {
            **os.environ,
            "DOCS_SITE_URL": url,
            "DOCS_REPO_URL": "https://github.com/example/abe",
            "DOCS_EDIT_URI": "edit/main/docs/",
            "NO_MKDOCS_2_WARNING": "1",
        }
        command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
        built = subprocess.run(
            command, cwd=root, env=env, capture_output=True, text=True, timeout=600, check=False
        )
        assert built.returncode == 0, built.stderr[-4000:]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield Site(root, folder, url, built.stdout + built.stderr)
        server.shutdown()
        thread.join()
