"""A shell inside this process with the magics loaded."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import strategies as st
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

import abe
from abe.backends.message_queue.base import encode_payload
from abe.backends.message_queue.base.outgoing import NO_HEADERS, prepare
from abe.ipython.payloads import Payloads

Run = Callable[..., Any]

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
json_objects = st.dictionaries(st.text(st.characters(codec="utf-8")), json_values, max_size=4)


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InteractiveShell]:
    """A shell without history."""
    config = Config()
    config.HistoryManager.enabled = False
    config.InteractiveShell.colors = "nocolor"
    config.InteractiveShell.cache_size = 0  # thousands of cells would fill it, with a warning
    folder = str(tmp_path_factory.mktemp("ipython"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IPYTHONDIR", folder)
        made = InteractiveShell.instance(config=config)
        yield made
        InteractiveShell.clear_instance()


@pytest.fixture
def run(shell: InteractiveShell) -> Iterator[Run]:
    """Run a cell and return its value; raise what it raised."""

    def run_cell(code: str) -> Any:
        outcome = shell.run_cell(code, store_history=True)
        outcome.raise_error()
        return outcome.result

    before = dict(shell.user_ns)
    run_cell("%load_ext abe")
    yield run_cell
    run_cell("%unload_ext abe")
    for name in set(shell.user_ns) - set(before):
        del shell.user_ns[name]


@pytest.fixture
def q(run: Run) -> abe.SyncBackend:
    """The session's backend, on an empty store."""
    backend = run(f"q = %abe_connect memory --env ABE_MEMORY_NAME=test-{uuid4().hex}\nq")
    assert isinstance(backend, abe.SyncBackend)
    return backend


def published(payloads: Payloads) -> list[Any]:
    """What arrives."""
    prepared = prepare(
        payloads.items, "k", NO_HEADERS, 0.0, encode=encode_payload, label=payloads.label
    )
    return [json.loads(item.body) for item in prepared]
