"""Ctrl-C races deliveries through the facade, in a process of its own: nothing is lost."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

ROUNDS = 200

HEAD = """
import os, random, signal, sys, threading, time
import abe

ROUNDS = int(sys.argv[1])
random.seed(ROUNDS)
main = threading.get_ident()
inside = False


def on_interrupt(number, frame):
    # An interrupt counts while a call of abe is running; the test itself is not under test.
    if inside:
        raise KeyboardInterrupt


signal.signal(signal.SIGINT, on_interrupt)


def race():
    # Publish and press Ctrl-C at nearly the same moment, in either order.
    for n in range(ROUNDS):
        time.sleep(random.uniform(0.0, 0.002))
        acts = [
            lambda n=n: publisher.publish("orders", {"n": n}),
            lambda: signal.pthread_kill(main, signal.SIGINT),
        ]
        random.shuffle(acts)
        acts[0]()
        time.sleep(random.uniform(0.0, 0.0004))
        acts[1]()
    global over
    over = True


def finish(seen, interrupts):
    lost = set(range(ROUNDS)) - set(seen)
    print(len(seen), len(set(seen)), "lost", sorted(lost), "interrupts", interrupts)
    assert not lost
    assert interrupts > ROUNDS / 20, interrupts


def start():
    thread = threading.Thread(target=race)
    thread.start()
    return thread

over = False
env = {"ABE_MEMORY_NAME": "race"}
publisher = abe.connect("memory", env=env)
q = abe.connect("memory", env=env)
seen, interrupts = [], 0
"""

NEW_LOOPS = """
thread = start()
while True:
    try:
        inside = True
        for m in q.consume(timeout=0.2 if over else 2.0):
            inside = False
            seen.append(m["n"])
            inside = True
        inside = False
        if over and not thread.is_alive():
            break
    except KeyboardInterrupt:
        inside = False
        interrupts += 1
thread.join()
finish(seen, interrupts)
assert q.stats().entries == (), q.stats()
"""

ONE_ITERATOR = """
thread = start()
it = iter(q.consume(timeout=2.0))
while len(set(seen)) < ROUNDS:
    try:
        inside = True
        for m in it:
            inside = False
            seen.append(m["n"])
            if len(set(seen)) == ROUNDS:
                break
            inside = True
        inside = False
        if over:
            break
    except KeyboardInterrupt:
        inside = False
        interrupts += 1
thread.join()
finish(seen, interrupts)
assert len(seen) == len(set(seen))
"""

TAKE = """
thread = start()
while len(set(seen)) < ROUNDS:
    got = []
    try:
        inside = True
        got = q.take(random.choice((1, 3)), timeout=0.05)
        inside = False
    except KeyboardInterrupt:
        inside = False
        interrupts += 1
    seen += [m["n"] for m in got]
    if not got and not thread.is_alive() and not q.stats().entries and not q._pool.undelivered:
        break
thread.join()
finish(seen, interrupts)
assert len(seen) == len(set(seen))
"""

BATCH = """
thread = start()
while len(set(seen)) < ROUNDS:
    got = []
    try:
        inside = True
        with q.batch(2, timeout=0.05) as got:
            inside = False
            seen += [m["n"] for m in got]
            inside = True
        inside = False
    except KeyboardInterrupt:
        inside = False
        interrupts += 1
    if not got and not thread.is_alive() and not q.stats().entries:
        break
thread.join()
finish(seen, interrupts)
"""

PLAIN = """
import asyncio

class Plain:
    # Never delivers twice: a message that gets lost on the way is gone.
    def __init__(self):
        self.sent = asyncio.Queue()

    @classmethod
    def from_env(cls):
        return cls()

    async def publish(self, key, payload):
        self.sent.put_nowait(payload)

    async def consume(self, *, group=None):
        while True:
            yield await self.sent.get()

publisher = q = abe.connect(Plain())
thread = start()
while len(set(seen)) < ROUNDS:
    try:
        inside = True
        for m in q.consume(timeout=0.2 if over else 2.0):
            inside = False
            seen.append(m["n"])
            inside = True
        inside = False
        if over and not thread.is_alive():
            break
    except KeyboardInterrupt:
        inside = False
        interrupts += 1
thread.join()
finish(seen, interrupts)
"""


def run(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", HEAD + textwrap.dedent(script), str(ROUNDS)],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Exception ignored" not in done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "script",
    [NEW_LOOPS, ONE_ITERATOR, TAKE, BATCH, PLAIN],
    ids=["new-loops", "one-iterator", "take", "batch", "plain-backend"],
)
def test_no_interrupt_loses_a_message(script: str) -> None:
    """200 interrupts race 200 deliveries, most of them while the call waits for just that."""
    run(script)
