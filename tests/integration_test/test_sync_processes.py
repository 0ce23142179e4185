"""The synchronous facade across forks and at interpreter exit."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

HEAD = """
import asyncio, logging, os, signal, sys, threading, time
import abe

logging.disable(logging.WARNING)  # the memory backend says that it is for development


def connect(name="default"):
    return abe.connect("memory", env={"ABE_MEMORY_NAME": name})
"""


def run(script: str, *, code: int = 0) -> tuple[str, str]:
    """Run a script where every warning is an error; return what it printed, and its stderr."""
    # Python 3.12 warns of every fork of a process that has threads.
    options = ("-X", "dev", "-W", "error", "-W", "ignore:This process:DeprecationWarning")
    done = subprocess.run(
        [sys.executable, *options, "-c", HEAD + textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


EVERYTHING = """
q = connect()
q.publish_many([{"n": n} for n in range(100)], key="orders")
it = q.consume(group="a")
next(it)
batch = q.batch(2, group="b")
batch.__enter__()
handled = threading.Event()
w = q.worker(lambda m: handled.set(), group="c")
async def nap(message): await asyncio.sleep(0)
v = q.worker(nap, group="d")
handled.wait(30)
another = connect("another")


async def main():
    global s
    s = q.aio.consume(group="e")
    await anext(s)


asyncio.run(main())


def forever():
    for m in another.consume():
        pass


def publish(queue):
    while True:
        queue.publish("orders", {})


threading.Thread(target=forever, daemon=True).start()
threading.Thread(target=publish, args=(another,), daemon=True).start()
while another.groups() == []:
    time.sleep(0.001)
"""


@pytest.mark.parametrize(
    ("end", "code", "last_words"),
    [
        ("", 0, ""),
        ("sys.exit(3)", 3, ""),
        ("raise ValueError('the end')", 1, "ValueError: the end"),
        ("for m in q.consume(): os.kill(os.getpid(), signal.SIGINT)", -2, "KeyboardInterrupt"),
        ("del q, it, batch, w, v, s, another", 0, ""),
    ],
    ids=["end", "exit", "exception", "interrupt", "forgotten"],
)
def test_nothing_is_left_and_nothing_is_said_at_exit(end: str, code: int, last_words: str) -> None:
    """With streams, batches, workers and threads in the middle of things."""
    _, stderr = run(EVERYTHING + end, code=code)
    if last_words:
        assert stderr.strip().splitlines()[-1] == last_words
        assert stderr.count("Traceback") == 1
    else:
        assert stderr == ""


def test_what_was_settled_before_the_exit_reaches_the_broker() -> None:
    """Acks that were only recorded are sent while closing."""
    out, stderr = run(
        """
        import atexit

        q = connect()
        q.publish_many([{"n": n} for n in range(10)], key="orders")
        atexit.unregister(sys.modules["abe.sync.portal.process"]._close_at_exit)
        late = abe.load_backend("memory")  # closed by nobody
        numbers = lambda: [(e.ready, e.in_flight) for e in asyncio.run(late.stats()).entries]
        atexit.register(lambda: print(numbers()))
        atexit.register(sys.modules["abe.sync.portal.process"]._close_at_exit)
        it = q.consume()
        for n in range(4):
            next(it)
        """
    )
    assert (out, stderr) == ("[(7, 0)]\n", "")


def test_a_forked_child_connects_anew() -> None:
    """What the parent opened says so, and is left alone."""
    out, stderr = run(
        """
        q = connect()
        q.publish_many([{"n": n} for n in range(3)], key="orders")
        it = q.consume()
        first = next(it)
        aio = q.aio
        child = os.fork()
        if child == 0:
            def attempt(call):
                try:
                    call()
                except abe.LoopError as error:
                    print("LoopError", "before a fork" in str(error))

            for call in (q.stats, q.take, it.__next__, first.ack, lambda: asyncio.run(aio.stats())):
                attempt(call)
            with q:
                pass
            del it, aio, first
            with connect("child") as mine:
                mine.publish("orders", {"n": 9})
                print([*mine.take()], flush=True)
            sys.exit(0)
        assert os.waitpid(child, 0)[1] == 0
        print(first.ack(), next(it))
        """
    )
    lines = out.splitlines()
    assert lines[:5] == ["LoopError True"] * 5
    assert "{'n': 9}" in lines[5]
    assert lines[6].startswith("True SyncMessage({'n': 1}")
    assert stderr == ""


def test_children_of_multiprocessing_work() -> None:
    """Forked from a process that is connected; each with a portal of its own."""
    out, stderr = run(
        """
        import multiprocessing

        q = connect()
        q.publish("orders", {"n": 0})

        def child(results):
            with connect("child") as mine:
                mine.publish("orders", {"n": os.getpid()})
                results.put(mine.take()[0]["n"])

        context = multiprocessing.get_context("fork")
        results = context.Queue()
        children = [context.Process(target=child, args=(results,)) for _ in range(4)]
        for process in children:
            process.start()
        pids = {results.get(timeout=30) for _ in children}
        for process in children:
            process.join()
        print(len(pids), [process.exitcode for process in children], [*q.take()])
        results.close()
        """
    )
    assert out.startswith("4 [0, 0, 0, 0] [SyncMessage({'n': 0}")
    assert stderr == ""
