"""What belongs to one process: state, backends, objects that are not copied."""

from __future__ import annotations

import asyncio
import copy
import gc
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

import abe
from abe.backends.message_queue.base import BaseBackend
from abe.backends.message_queue.base.process import identity
from abe.backends.message_queue.service.memory import MemoryBackend
from abe.errors import LoopError

FORKED = """
import asyncio, ctypes, os
from abe.backends.message_queue.loader import load_backend
from abe.backends.message_queue.service import memory
from abe.errors import LoopError

used, unused = memory.MemoryBackend("used"), load_backend("sqlite")
asyncio.run(used.publish("k", {}))
memory._stores.get().lock.acquire()  # as another thread might at that moment
used._store._lock.acquire()
if not ctypes.PyDLL(None).fork():
    try:
        asyncio.run(used.publish("k", {}))
    except LoopError as error:
        print("before a fork" in str(error))
    asyncio.run(used.aclose())
    fresh = load_backend("memory", env={"ABE_MEMORY_NAME": "used"})
    asyncio.run(fresh.publish("k", {}))
    print(len(asyncio.run(fresh.peek())))
    asyncio.run(unused.publish("k", {}))
    print("published", flush=True)
    os._exit(0)
os.wait()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_a_fork_without_hooks_leaves_nothing_of_the_parents_in_use(tmp_path: object) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKED],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
        cwd=str(tmp_path),
    )
    assert done.stdout.split() == ["True", "1", "published"]


class Bound(MemoryBackend):
    """A backend whose connections belong to an event loop."""

    loop_bound = True
    _survives_fork = BaseBackend._survives_fork


def test_connections_of_a_loop_are_not_used_in_a_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on the same loop; a backend that was not used before may be."""

    async def main() -> None:
        used, unused = Bound("used"), Bound("unused")
        await used.publish("k", {})
        monkeypatch.setattr(identity, "known", -1)
        for call in (used.publish("k", {}), used.peek(), used.ping()):
            with pytest.raises(LoopError, match="before a fork"):
                await call
        await unused.publish("k", {})
        await used.aclose()
        await unused.aclose()

    asyncio.run(main())


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_what_owns_a_connection_is_neither_copied_nor_pickled(
    copied: Callable[[Any], object],
) -> None:
    """A copy would share the connection, and close it once it is forgotten."""
    with abe.connect("memory", env={"ABE_MEMORY_NAME": "not-copied"}) as queue:
        owners = (
            queue,
            queue.aio,
            queue.aio.backend,
            queue.consume(),
            queue.aio.consume(),
            queue.batch(1),
        )
        for owner in owners:
            with pytest.raises(TypeError, match=r"cannot be copied or pickled; call abe\."):
                copied(owner)
        gc.collect()
        queue.publish("k", {})
        assert queue.take() == [{}]
