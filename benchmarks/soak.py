"""Publishes and consumes at full speed for a long time and watches the memory.

Run it as ``python benchmarks/soak.py [--minutes 10]``. A publisher and a consumer with retries,
rejections and cancelled handlers share a memory backend; the process must not grow, and every
message must end as processed or dead. Needs the dependency group ``bench``.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import sys
import time
import uuid

import psutil

import abe
from abe.backends.message_queue.service.memory import MemoryBackend

WARM_UP = 0.2
"""Share of the time after which growth counts."""
ALLOWED_GROWTH = 0.05
AHEAD = 2_000
"""Messages published and not yet handled, at most."""


class Soak:
    """One run."""

    def __init__(self) -> None:
        self.backend = MemoryBackend(uuid.uuid4().hex, maxsize=AHEAD)
        retry = abe.RetryPolicy(max_attempts=3, base=0.001, max_delay=0.01)
        self.consumer = abe.AsyncLoopConsumer(self.backend, "soak", concurrency=4, retry=retry)
        self.published = 0

    async def handle(self, message: abe.Message) -> None:
        """Succeed mostly; fail, reject or ask for a retry now and then."""
        n = message["n"]
        if n % 500 == 0:
            raise abe.Reject("every five-hundredth")
        if n % 100 == 0 and message.attempt == 1:
            raise abe.Retry(0.0)
        if n % 50 == 0 and message.attempt == 1:
            raise ValueError(n)
        if n % 20 == 0:
            await asyncio.sleep(0)

    async def publish(self, until: float) -> None:
        """Keep the backend full."""
        body = {"text": "x" * 100, "list": [1, 2, 3]}
        while time.monotonic() < until:
            await self.backend.publish_many(
                [{**body, "n": self.published + n} for n in range(100)], key="soak.eu"
            )
            self.published += 100
            if self.published % 100_000 == 0:
                await self.forget_dead()

    async def forget_dead(self) -> None:
        """Dead letters are kept by design; replaying them as handled keeps the run flat."""
        self.backend._store._groups["soak"].dead.clear()

    @property
    def settled(self) -> int:
        """How many messages have come to an end."""
        return self.consumer.processed + self.consumer.dead

    async def run(self, seconds: float) -> bool:
        """Return whether memory stayed flat and nothing was lost."""
        process = psutil.Process()
        task = asyncio.create_task(self.consumer.run(self.handle))
        async with self.backend.consume(group="soak"):
            pass  # the group exists before the first message is published
        started = time.monotonic()
        publisher = asyncio.create_task(self.publish(started + seconds))
        samples: list[tuple[float, float]] = []
        while not publisher.done():
            await asyncio.wait([publisher], timeout=seconds / 100)
            gc.collect()
            samples.append((time.monotonic() - started, process.memory_info().rss / 2**20))
        deadline = time.monotonic() + 60
        while self.settled < self.published and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        await self.consumer.shutdown()
        await task
        late = [rss for at, rss in samples if at > seconds * WARM_UP]
        third = max(1, len(late) // 3)
        first, last = sum(late[:third]) / third, sum(late[-third:]) / third
        print(
            f"{seconds:.0f} s: {self.published:,} published, {self.consumer.processed:,} processed,"
            f" {self.consumer.retried:,} retried, {self.consumer.dead:,} dead;"
            f" {self.published / seconds:,.0f} messages/s"
        )
        print(f"memory: {first:.1f} MiB in the first third after warm-up, {last:.1f} in the last")
        return last < first * (1 + ALLOWED_GROWTH) and self.settled == self.published


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    parser = argparse.ArgumentParser(description="Soak test of the memory backend and consumer")
    parser.add_argument("--minutes", type=float, default=10.0)
    sys.exit(0 if asyncio.run(Soak().run(parser.parse_args().minutes * 60)) else 1)
