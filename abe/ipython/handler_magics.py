"""The magics that run handlers in the background."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from abe.backends.message_queue.base.keys import KeyFilter, validate_group
from abe.backends.message_queue.consumer import RetryPolicy
from abe.backends.message_queue.handling.handlers import check_handler
from abe.display.options import CONCURRENCY, GROUP, MAX_ATTEMPTS, Option
from abe.display.text import cell, did_you_mean, group_name
from abe.ipython.grammar import OUT, Syntax
from abe.ipython.handlers import Handler, HandlerList
from abe.ipython.session import Call, Settings, magic, say

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

DRAIN_TIMEOUT = 10.0
"""Seconds that stopping waits for messages in flight, while the cell is blocked."""


NAME = Option(
    *("--name", "", "N"),
    "Its name in %abe_handlers and %abe_stop.",
    default="the function's name",
)
ALL = Option("--all", does="Stop all of them.")


class HandlerMagics(Settings):
    """Handle messages in the background."""

    @magic(
        Syntax(
            "%%abe_handler",
            "[KEYS…], then a function as the cell",
            (GROUP, NAME, CONCURRENCY, MAX_ATTEMPTS, OUT),
            completes="keys",
        )
    )
    def abe_handler(self, call: Call) -> Any:
        """Let the function defined in the cell handle messages in the background.

        ::

            %%abe_handler orders.* -g billing
            def bill(order):
                print("billing", order["id"], order.key)

            %%abe_handler payments --name paid --concurrency 8 --max-attempts 3
            async def note(payment):
                await q.aio.publish("ledger.entries", {"amount": payment["amount"]})

        The cell runs as usual, except that it cannot await outside of functions; the last function
        it defines is called with each message. When it returns, the message is acknowledged. When
        it raises, the message is redelivered later, and after the last attempt it becomes a dead
        letter (see %abe_dead). raise abe.Reject("why") gives up at once, raise abe.Retry(delay=5)
        requests another attempt. The output of the function appears below this cell, beside its
        status and counters. A handler of the same name is replaced, so the cell can be run again;
        %abe_stop, another %abe_connect, %unload_ext and the end of the kernel stop it.

        A sync function runs in a thread of its own. An async function shares one event loop with
        everything else of abe: it must not block, and awaits q.aio instead of calling q.
        """
        options, keys, session = call.options, call.words or None, self.session
        KeyFilter(keys)
        group = validate_group(call.group)
        function = _define(call)
        backend = session.backend()
        name, attempts = options["name"] or function.__name__, options["max_attempts"]
        filters = f", {cell(' '.join(keys))}" if keys else ""
        where = f"on {cell(backend.name)}, {group_name(group)}{filters}"
        old = session.handlers.get(name)
        if old is not None and old.where != where:
            say(f"this replaces handler {cell(name, 60)} {old.where}; with --name N both would run")
        made = Handler(name, where, self.refresh)
        session.handlers.start(
            made,
            lambda: backend.worker(
                function,
                keys=keys,
                group=group,
                concurrency=options["concurrency"] or 1,
                retry=RetryPolicy(max_attempts=attempts) if attempts else None,
                drain_timeout=DRAIN_TIMEOUT,
            ),
            live=session.in_notebook,
        )
        session.note(groups=[group])
        if not session.in_notebook:
            say(f"handler {cell(name, 60)} {where}: running. %abe_handlers shows its counters")
        call.result(made.worker)

    @magic(Syntax("%abe_handlers", options=(OUT,), max_words=0))
    def abe_handlers(self, call: Call) -> Any:
        """List the handlers that %%abe_handler has started, with their counters.

        ::

            %abe_handlers

        A handler that has failed permanently stays in the list, with its error, until it is
        replaced or stopped.

        Returns:
          a list with .name and .worker (.processed, .failed, .last_error …), shown as a table
        """
        return call.result(HandlerList(self.session.handlers.values()))

    @magic(Syntax("%abe_stop", "[NAME…]", (ALL,), completes="handlers"))
    def abe_stop(self, call: Call) -> Any:
        """Stop handlers that %%abe_handler has started.

        ::

            %abe_stop
            %abe_stop bill
            %abe_stop --all

        Messages in flight are finished first, for at most 10 seconds (1 second when the kernel
        ends); unsettled messages are then redelivered. Without a name the only handler is stopped.
        """
        running, names = self.session.handlers, call.words
        if call.options["all"] and names:
            raise call.syntax.error("give either names or --all")
        if not names:
            if len(running) > 1 and not call.options["all"]:
                raise call.syntax.error(f"which one? There are {_list(running)}; --all stops all")
            names = list(running)
        for name in names:
            if name not in running:
                hint = did_you_mean(name, running) or f"; there are {_list(running)}"
                raise call.syntax.error(f"no handler is called {cell(name, 60)}{hint}")
        self.session.stop(dict.fromkeys(names))
        if not names:
            say("no handler is running")


def _define(call: Call) -> Callable[..., Any]:
    """Run the cell as usual and return the last function that it defines."""
    shell: InteractiveShell = call.session.shell
    body = call.body or ""
    source = shell.transform_cell(body)
    filename = shell.compile.cache(source, shell.execution_count, raw_code=body)
    tree = shell.transform_ast(shell.compile.ast_parse(source, filename=filename))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    names = [node.name for node in tree.body if isinstance(node, kinds)]
    if not names:
        raise call.syntax.error("the cell must define a function: def handle(message): …")
    exec(shell.compile(tree, filename, "exec"), shell.user_global_ns, shell.user_ns)  # noqa: S102
    try:
        return check_handler(shell.user_ns[names[-1]], f"{names[-1]}()")
    except TypeError as error:
        raise call.syntax.error(str(error)) from None


def _list(names: Iterable[str]) -> str:
    return ", ".join(cell(name, 60) for name in names) or "none"
