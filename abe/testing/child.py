"""A process that uses a backend until it is killed: ``python -m abe.testing.child``.

``NAME consume GROUP COUNT`` takes COUNT messages of GROUP (as JSON), says ``holding`` and waits;
``NAME publish KEY`` publishes without end and says after each how many there are.
"""

from __future__ import annotations

import asyncio
import json
import sys

from abe.backends.message_queue.base import Message, open_stream
from abe.backends.message_queue.loader import load_backend


async def consume(name: str, group: str, count: str) -> None:
    """Hold messages until killed."""
    stream = open_stream(load_backend(name), group=json.loads(group), prefetch=1)
    held: list[Message] = []
    while len(held) < int(count):
        message = await anext(stream)
        message.detach()  # else asking for the next one would ack it
        held.append(message)
    sys.stdout.write("holding\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


async def publish(name: str, key: str) -> None:
    """Publish until killed."""
    backend = load_backend(name)
    n = 0
    while True:
        await backend.publish(key, {"n": n})
        n += 1
        sys.stdout.write(f"{n}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _, backend_name, what, *arguments = sys.argv
    asyncio.run((consume if what == "consume" else publish)(backend_name, *arguments))
