"""The tutorial that runs the quickstart on Redis, on a server that it starts itself and on ours."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import nbformat
import pytest
import redis
from nbclient import NotebookClient

from abe_backend_redis.testing import RedisServer

NOTEBOOK = Path(__file__).resolve().parents[3] / "notebooks" / "06_same_notebook_on_redis.ipynb"
KERNEL = "abe-redis-test"


def execute(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Run every cell in a kernel on this interpreter that keeps its files in ``folder``."""
    spec = folder / "data" / "kernels" / KERNEL
    spec.mkdir(parents=True)
    launch = ["-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=ERROR"]
    argv = [sys.executable, "-Xfrozen_modules=off", *launch]
    (spec / "kernel.json").write_text(
        json.dumps({"argv": argv, "display_name": KERNEL, "language": "python"})
    )
    for name in [it for it in os.environ if it.startswith(("JUPYTER", "IPYTHON"))]:
        patch.delenv(name)
    patch.setenv("IPYTHONDIR", str(folder / "ipython"))
    patch.setenv("JUPYTER_CONFIG_DIR", str(folder / "config"))
    patch.setenv("JUPYTER_DATA_DIR", str(folder / "data"))
    patch.setenv("JUPYTER_RUNTIME_DIR", str(folder / "runtime"))
    patch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    NotebookClient(
        nbformat.read(NOTEBOOK, as_version=4),
        kernel_name=KERNEL,
        timeout=60,
        resources={"metadata": {"path": str(folder)}},
    ).execute()


@pytest.mark.timeout(120)
@pytest.mark.usefixtures("server")
def test_notebook_on_its_own_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It starts a server, kills it, and leaves no file behind."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.delenv("ABE_TEST_REDIS_URL", raising=False)
    monkeypatch.setenv("TMPDIR", str(folder))
    execute(tmp_path, monkeypatch)
    assert list(folder.glob("abe-redis-*")) == []


@pytest.mark.timeout(120)
def test_notebook_on_a_given_server(
    tmp_path: Path, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It uses that one, and leaves nothing on it but what Redis deletes in a while."""
    with redis.Redis.from_url(server.url) as client:
        before = {*client.scan_iter()}
        monkeypatch.setenv("ABE_TEST_REDIS_URL", server.url)
        execute(tmp_path, monkeypatch)
        left = {*client.scan_iter()} - before
        assert left, "it has used another server"
        assert [name for name in left if client.ttl(name) < 0] == []
