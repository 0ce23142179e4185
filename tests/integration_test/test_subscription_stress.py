"""One group, read at once by threads and by event loops that break off, give back and vanish."""

from __future__ import annotations

import asyncio
import itertools
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator

import pytest

import abe
from abe.backends.message_queue.base import BaseMessage
from abe.backends.message_queue.service.memory import MemoryBackend
from abe.sync import SyncBackend

MESSAGES = 2000
PATIENCE = 60.0

_names = itertools.count()


@pytest.fixture
def fast_switches() -> Iterator[None]:
    """Let threads take turns so often that steps that only look atomic are cut."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


class Reader:
    """Consumes in its own way until every message was acked once, by whomever.

    Args:
        q: The connection that all readers share.
        acked: How often each message was acked, by its number.
        seed: Of what it does.
    """

    def __init__(self, q: SyncBackend, acked: Counter[int], seed: int) -> None:
        self.q = q
        self.acked = acked
        self.random = random.Random(seed)

    def done(self) -> bool:
        return len(self.acked) >= MESSAGES

    def note(self, message: BaseMessage, recorded: bool) -> None:
        if recorded:
            self.acked[message["n"]] += 1

    def run_thread(self) -> None:
        while not self.done():
            for message in self.q.consume(timeout=0.2):
                move = self.random.random()
                if move < 0.05:
                    message.nack()
                elif move < 0.1:
                    message.release()
                elif move < 0.13:
                    break
                else:
                    self.note(message, message.ack())

    def run_loop(self) -> None:
        while not self.done():
            asyncio.run(self.read_on_a_loop())

    async def read_on_a_loop(self) -> None:
        stream = self.q.aio.consume()
        for _ in range(self.random.randrange(1, 200)):
            try:
                message = await asyncio.wait_for(anext(stream), self.random.choice([0.002, 0.2]))
            except TimeoutError:
                if self.done():
                    break
                continue
            move = self.random.random()
            if move < 0.05:
                await message.nack()
            elif move < 0.1:
                stream.unread(message)
            elif move < 0.12:
                return  # dropped, with a message in hand
            else:
                self.note(message, await message.ack())
        await stream.aclose()


@pytest.mark.timeout(180)
@pytest.mark.usefixtures("fast_switches")
@pytest.mark.parametrize("seed", [1, 2])
def test_no_message_is_lost_or_acked_twice(seed: int) -> None:
    """A settlement wins or loses as one step, whichever thread it comes from."""
    acked: Counter[int] = Counter()
    with abe.connect(MemoryBackend(f"stress-{next(_names)}", lease=PATIENCE)) as q:
        q.publish_many([{"n": n} for n in range(MESSAGES)], key="k")
        readers = [Reader(q, acked, seed * 100 + n) for n in range(5)]
        work = [r.run_thread for r in readers[:3]] + [r.run_loop for r in readers[3:]]
        threads = [threading.Thread(target=run) for run in work]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + PATIENCE
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            assert not thread.is_alive(), f"{MESSAGES - len(acked)} messages are missing"
        assert len(acked) == MESSAGES
        assert set(acked.values()) == {1}
        assert q.take(1, timeout=0.2) == []
