"""Select installed providers by the environment and use each on a broker that it starts itself.

Run it in an environment that holds nothing but abe and the providers, with their distributions as
arguments. A provider's ``testing.broker()`` starts a broker and yields the variables that lead to
it.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from importlib import metadata

import abe

GROUP = "abe.backends.message_queue"


def check(condition: bool, problem: str) -> None:
    """End the program with a message unless the condition holds."""
    if not condition:
        sys.exit(f"smoke test: {problem}")


def package_of(point: metadata.EntryPoint) -> str:
    """Return the package that an entry point leads to."""
    return point.module.partition(".")[0]


def loaded(expected: str) -> list[str]:
    """Check that the environment selects a backend; return the warnings that came with it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        backend = abe.load_backend()
    name = getattr(backend, "name", None)
    check(name == expected, f"{name!r} was selected instead of {expected!r}")
    return [str(warning.message) for warning in caught]


def check_choice(names: Sequence[str]) -> None:
    """Without ``QUEUE_BACKEND`` it is the first, with one warning if there are others."""
    texts = loaded(names[0])
    check(len(texts) == (len(names) > 1), f"{len(texts)} warnings: {texts}")
    for text in texts:
        check(all(name in text for name in names), f"not all of {names} are named: {text}")
    print(f"without QUEUE_BACKEND: {texts or names[0]}")


async def round_trip(name: str) -> None:
    """Publish and consume one message asynchronously."""
    async with abe.aconnect() as q:
        await q.publish("smoke.async", {"id": 1})
        async for message in q.consume():
            check(message == {"id": 1}, f"{name} delivered {message!r}")
            check(message.key == "smoke.async", f"{name} delivered the key {message.key!r}")
            await message.ack()
            break


def check_use(name: str) -> None:
    """With ``QUEUE_BACKEND`` it is that one, and messages go through its broker."""
    os.environ["QUEUE_BACKEND"] = name
    texts = loaded(name)
    check(not texts, f"QUEUE_BACKEND={name} gives warnings: {texts}")
    asyncio.run(asyncio.wait_for(round_trip(name), 60))
    with abe.connect() as q:
        q.publish("smoke.sync", {"id": 2})
        taken = [dict(message) for message in q.take(1, timeout=30)]
        check(taken == [{"id": 2}], f"{name} delivered {taken}")
    print(f"QUEUE_BACKEND={name}: published and consumed")


def main(distributions: Sequence[str]) -> None:
    """Start every provider's broker and use every backend."""
    registered = {name: metadata.distribution(name).entry_points for name in distributions}
    points = [point for found in registered.values() for point in found.select(group=GROUP)]
    absent = set()
    os.environ.pop("QUEUE_BACKEND", None)
    with ExitStack() as stack:
        for package in sorted({package_of(point) for point in points}):
            broker = importlib.import_module(f"{package}.testing").broker()
            try:
                os.environ.update(stack.enter_context(broker))
            except FileNotFoundError as error:
                check(not os.environ.get("CI"), f"{package}: {error}")
                print(f"{package} is not used: {error}")
                absent.add(package)
        check_choice(sorted(point.name for point in points))
        for point in points:
            if package_of(point) not in absent:
                check_use(point.name)


if __name__ == "__main__":
    main(sys.argv[1:])
