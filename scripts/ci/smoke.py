"""Use the installed wheel as a newcomer would; run in an environment that holds nothing else."""

from __future__ import annotations

import asyncio
import sys
from importlib import metadata
from pathlib import Path

import abe


def check(condition: bool, problem: str) -> None:
    """End the program with a message unless the condition holds."""
    if not condition:
        sys.exit(f"smoke test: {problem}")


async def round_trip() -> None:
    """Publish and consume one message asynchronously."""
    async with abe.aconnect("memory") as q:
        await q.publish("smoke.async", {"id": 1})
        async for message in q.consume(group="smoke", keys=["smoke.async"]):
            check(message == {"id": 1} and message.key == "smoke.async", f"received {message!r}")
            await message.ack()
            break


def main() -> None:
    """Check installation, exports and both ways of consuming."""
    installed = {dist.name for dist in metadata.distributions()} - {"pip", "setuptools"}
    check(installed == {"abstract-backend"}, f"unexpected distributions: {installed}")
    check(Path(abe.__file__).is_relative_to(sys.prefix), f"abe comes from {abe.__file__}")
    check(metadata.version("abstract-backend") == abe.__version__, "two versions")
    for name in abe.__all__:
        check(hasattr(abe, name), f"abe.{name} is exported and missing")
    check("memory" in {backend.name for backend in abe.list_backends()}, "memory is not listed")

    asyncio.run(round_trip())
    with abe.connect("memory") as q:
        q.publish("smoke.sync", {"id": 2})
        taken = q.take(1, group="smoke", keys="smoke.sync")
        check([dict(message) for message in taken] == [{"id": 2}], f"took {taken!r}")
    print(f"abe {abe.__version__} works alone on Python {sys.version.split()[0]}")


if __name__ == "__main__":
    main()
