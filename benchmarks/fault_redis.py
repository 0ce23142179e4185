"""Redis killed, consumers killed, connections cut, while messages are published and consumed.

    python benchmarks/fault_redis.py [--restarts 10] [--kills 10] [--cuts 50] [--version 6.2]

Redis writes and syncs its append-only file before it answers. Publishers and consumers talk to it
through a proxy, which can cut every connection at any byte. Consumers are processes. At the end
every message for which ``publish`` had returned must have been processed; the exit status says so.
Duplicates are what at-least-once allows: they are counted and printed.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import logging
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator

from abe.errors import AbeError
from abe_backend_redis.backend import RedisBackend
from abe_backend_redis.testing import RedisServer

PREFIX = "fault"
GROUP = "workers"
LEASE = 2.0
KEYS = 7
CONSUMERS = 3
PUBLISHERS = 4
PATIENCE = 60.0


class Proxy:
    """Passes bytes on, until it cuts every connection."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self._writers: set[asyncio.StreamWriter] = set()
        self.cuts = 0
        self.port = 0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Listen while the block runs."""
        listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = listener.sockets[0].getsockname()[1]
        try:
            yield
        finally:
            listener.close()
            self.cut()

    def cut(self) -> int:
        """Cut all connections; returns how many."""
        count = len(self._writers) // 2
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()
        return count

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            out, back = await asyncio.open_connection("127.0.0.1", self._server.port)
        except OSError:
            writer.transport.abort()
            return
        pair = {writer, back}
        self._writers |= pair
        await asyncio.wait(
            [
                asyncio.create_task(_pass_on(reader, back)),
                asyncio.create_task(_pass_on(out, writer)),
            ],
            return_when=asyncio.FIRST_COMPLETED,
        )
        for end in pair:
            end.transport.abort()
        self._writers -= pair


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            # Small pieces, so that a cut may come in the middle of an answer.
            for start in range(0, len(data), 4096):
                writer.write(data[start : start + 4096])
                await writer.drain()


class Trial:
    """Everything that runs at the same time, and what it has counted."""

    def __init__(self, server: RedisServer) -> None:
        self.server = server
        self.proxy = Proxy(server)
        self.accepted: set[int] = set()
        self.seen: collections.Counter[int] = collections.Counter()
        self.failures = 0
        self.died = 0
        self.stopping = False
        self._next = 0
        self._consumers: list[asyncio.subprocess.Process] = []
        self._readers: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """Where Redis seems to be."""
        return f"redis://127.0.0.1:{self.proxy.port}/0"

    async def publish(self) -> None:
        """Publish until stopped, one message or several at a time, each until it is accepted."""
        async with RedisBackend(self.url, prefix=PREFIX, timeout=2.0, publish_timeout=5.0) as queue:
            while not self.stopping:
                count = random.choice((1, 1, 1, 10))
                first, self._next = self._next, self._next + count
                items = [(f"key.{n % KEYS}", {"n": n}) for n in range(first, first + count)]
                while True:
                    try:
                        await (queue.publish_many(items) if count > 1 else queue.publish(*items[0]))
                        break
                    except AbeError:
                        self.failures += 1
                        await asyncio.sleep(0.01)
                self.accepted.update(range(first, first + count))

    async def start_consumer(self) -> None:
        """Start a process, and count what it says it has processed."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, __file__, "--consume", self.url, stdout=asyncio.subprocess.PIPE
        )
        self._consumers.append(process)
        task = asyncio.create_task(self._count(process))
        self._readers.add(task)
        task.add_done_callback(self._readers.discard)

    async def _count(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            if line.endswith(b"\n"):
                self.seen[int(line)] += 1

    async def kill_consumer(self) -> None:
        """Kill a process with SIGKILL and start another."""
        victim = self._consumers.pop(random.randrange(len(self._consumers)))
        self.died += victim.returncode is not None
        with contextlib.suppress(ProcessLookupError):
            victim.send_signal(signal.SIGKILL)
        await victim.wait()
        await self.start_consumer()

    async def restart(self) -> None:
        """Kill Redis with SIGKILL, leave it down for a moment, start it again."""
        await asyncio.to_thread(self.server.kill)
        await asyncio.sleep(random.uniform(0.0, 0.5))
        await asyncio.to_thread(self.server.start)

    async def cut(self) -> None:
        """Cut all connections."""
        self.proxy.cuts += self.proxy.cut()

    async def run(self, restarts: int, kills: int, cuts: int) -> bool:
        """Do it all and return whether nothing was lost."""
        async with self.proxy.running():
            for _ in range(CONSUMERS):
                await self.start_consumer()
            publishers = [asyncio.create_task(self.publish()) for _ in range(PUBLISHERS)]
            plan = [self.restart] * restarts + [self.kill_consumer] * kills + [self.cut] * cuts
            random.shuffle(plan)
            for event in plan:
                await asyncio.sleep(random.uniform(0.1, 0.5))
                await event()
            self.stopping = True
            await asyncio.gather(*publishers)
            waited = await self._drain()
            left = await self._backlog()
            await self._stop_consumers()
        return self._report(restarts, kills, cuts, waited, left)

    async def _drain(self) -> float:
        started = time.monotonic()
        for _ in range(int(PATIENCE / 0.05)):
            if not self.accepted - self.seen.keys():
                break
            await asyncio.sleep(0.05)
        return time.monotonic() - started

    async def _backlog(self) -> int:
        """Return what the group has before it, once it had time to settle everything."""
        left = -1
        async with RedisBackend(self.server.url, prefix=PREFIX) as queue:
            for _ in range(int(PATIENCE)):
                stats = await queue.stats()
                left = sum(stats.total(n, group=GROUP) for n in ("ready", "in_flight", "delayed"))
                if not left:
                    break
                await asyncio.sleep(1.0)
        return left

    async def _stop_consumers(self) -> None:
        for process in self._consumers:
            self.died += process.returncode is not None
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        await asyncio.gather(*self._readers)

    def _report(self, restarts: int, kills: int, cuts: int, waited: float, left: int) -> bool:
        lost = self.accepted - self.seen.keys()
        duplicates = sum(self.seen.values()) - len(self.seen)
        print(
            f"server killed -9 and restarted: {restarts}; consumers killed -9: {kills}; "
            f"cuts: {cuts} ({self.proxy.cuts} connections)\n"
            f"published: {len(self.accepted)} ({self.failures} publish calls raised and were "
            f"repeated); processed: {len(self.seen)}; drained in {waited:.1f} s\n"
            f"lost: {len(lost)}; duplicates: {duplicates}; left unsettled: {left}; "
            f"consumers that ended by themselves: {self.died}"
        )
        return not (lost or left or self.died)


async def consume(url: str) -> None:
    """Say what was processed, then ask for more, which acks it."""
    async with RedisBackend(url, prefix=PREFIX, lease=LEASE, timeout=2.0) as queue:
        async for message in queue.consume(group=GROUP):
            os.write(1, b"%d\n" % message["n"])


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--restarts", type=int, default=10)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--cuts", type=int, default=50)
    parser.add_argument("--version", help="of Redis: 8.2 or 6.2")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--consume", help=argparse.SUPPRESS)
    given = parser.parse_args()
    # Every fault is logged as a warning; here they are wanted.
    logging.basicConfig(level=logging.ERROR)
    if given.consume:
        asyncio.run(consume(given.consume))
        return
    random.seed(given.seed)
    print(f"seed: {given.seed}")
    with RedisServer(given.version) as server:
        fine = asyncio.run(Trial(server).run(given.restarts, given.kills, given.cuts))
    sys.exit(not fine)


if __name__ == "__main__":
    main()
