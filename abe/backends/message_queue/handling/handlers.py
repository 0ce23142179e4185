"""Any kind of handler as one async function, and sync ones in threads."""

from __future__ import annotations

import asyncio
import inspect
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextvars import copy_context
from functools import partial
from typing import Any, cast

from abe.backends.message_queue.base.message import Message, SyncMessage
from abe.backends.message_queue.handling.threads import DaemonThreads
from abe.types import EventHandlerFunc, EventHandlerProtocol

__all__ = ["StillRunning", "adapt_handler", "check_handler"]

Handler = Callable[[Message], Awaitable[object]]


class StillRunning(asyncio.CancelledError):
    """The call was cancelled, and the handler goes on in its thread."""


def check_handler(handler: object, name: str = "handler") -> Callable[..., Any]:
    """Return what is called with each message; ``name`` is what the error calls the handler."""
    if isinstance(handler, type):
        raise TypeError(f"{name} is the class {handler.__name__}; give an instance of it")
    function: Any = handler
    if isinstance(handler, EventHandlerProtocol):
        function = handler.handle_event
    if not callable(function):
        kind = type(handler).__name__
        raise TypeError(f"{name} is {kind}; it must be a function or have handle_event()")
    kinds = (function, type(function).__call__)
    if any(inspect.isgeneratorfunction(f) or inspect.isasyncgenfunction(f) for f in kinds):
        raise TypeError(f"{name} contains 'yield': calling it would not run any of it")
    try:
        # Not that of what a decorator wraps: a decorator may add arguments.
        inspect.signature(function, follow_wrapped=False).bind(None)
    except TypeError as error:
        raise TypeError(f"{name} is called with one argument, the message: {error}") from None
    except ValueError:  # written in C
        pass
    return cast("Callable[..., Any]", function)


def adapt_handler(handler: EventHandlerFunc, threads: DaemonThreads) -> Handler:
    """Return an async function that handles one message, a sync one in ``threads``."""
    function = check_handler(handler)
    if any(map(inspect.iscoroutinefunction, (function, type(function).__call__))):
        return partial(_in_context, function)
    return _in_thread(function, threads)


@types.coroutine
def _in_context(
    function: Callable[[Any], Coroutine[Any, Any, object]], argument: object
) -> Generator[Any, Any, object]:
    """Run an async handler in a copy of the context: the next one must not see its variables."""
    run = copy_context().run
    coroutine = run(function, argument)
    resume, value = coroutine.send, None
    try:
        while True:
            awaited = run(resume, value)
            try:
                value = yield awaited
                resume = coroutine.send
            except GeneratorExit:
                raise
            except BaseException as error:
                resume, value = coroutine.throw, error
    except StopIteration as stop:
        return stop.value
    finally:
        coroutine.close()


def _in_thread(handler: Callable[[Any], Any], threads: DaemonThreads) -> Handler:
    async def call(message: Message) -> object:
        future = threads.submit(handler, SyncMessage(message))
        try:
            result = await future
        except asyncio.CancelledError:
            if future.cancelled():
                raise StillRunning from None
            # The handler was done when the cancellation came: what it did counts.
            result = future.result()
        if inspect.isawaitable(result):
            result = await _in_context(_wait_for, result)
        return result

    return call


async def _wait_for(result: Awaitable[object]) -> object:
    return await result
