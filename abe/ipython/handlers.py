"""``%%abe_handler``, ``%abe_handlers`` and ``%abe_stop``."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from abe.backends.message_queue.base.keys import KeyFilter, validate_group
from abe.backends.message_queue.consumer import RetryPolicy
from abe.backends.message_queue.handling.handlers import check_handler
from abe.display.results import Listing
from abe.display.table import Table
from abe.display.text import cell, limits, plural
from abe.ipython.card import COLUMNS, NUMERIC, numbers, problem, where
from abe.ipython.grammar import Option, Syntax, count, identifier, parse
from abe.ipython.registry import Handler
from abe.ipython.session import Call, say

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell


__all__ = [
    "HANDLER",
    "HANDLERS",
    "STOP",
    "Handler",
    "Handlers",
    "handler",
    "handlers",
    "stop",
]

HANDLER = Syntax(
    "%%abe_handler",
    "[KEYS…] [-g GROUP] [--name N] [--concurrency C] [--max-attempts A] [-o NAME],"
    " then a function as the cell",
    (
        Option("--group", "-g", "GROUP"),
        Option("--name", "", "N"),
        Option("--concurrency", "-c", "C", count, default=1),
        Option("--max-attempts", "-a", "A", count),
        Option("--out", "-o", "NAME", identifier),
    ),
)
HANDLERS = Syntax("%abe_handlers", "[-o NAME]", (Option("--out", "-o", "NAME", identifier),))
STOP = Syntax("%abe_stop", "[NAME…|--all]", (Option("--all"),))

DRAIN_TIMEOUT = 10.0
"""Seconds that stopping waits for messages in flight: somebody is looking at the cell."""


class Handlers(Listing[Handler]):
    """The handlers of a session, shown as a table."""

    def table(self) -> Table:
        """Return what is shown."""
        rows = [
            (cell(h.name, 60), cell(h.where), *numbers(h.worker), problem(h.worker))
            for h in self[: limits.rows]
        ]
        columns = ["handler", "listens", *COLUMNS, "last error"]
        if not any(row[-1] for row in rows):
            columns, rows = columns[:-1], [row[:-1] for row in rows]
        return Table(plural(len(self), "handler"), columns, rows, total=len(self), numeric=NUMERIC)


def handler(call: Call, body: str) -> Any:
    """Run the cell and let the function it defines handle messages in the background."""
    arguments = parse(HANDLER, call.line, call.evaluate)
    options, keys = arguments.options, arguments.words or None
    session = call.session
    KeyFilter(keys)
    group = validate_group(call.group(options["group"]))
    function = _define(session.shell, body)
    backend = session.backend()
    name = options["name"] or function.__name__
    attempts = options["max_attempts"]
    made = Handler(name, where(backend.name, group, keys), session.settings.refresh)
    old = session.handlers.get(name)
    if old is not None and old.where != made.where:
        say(f"this replaces handler {cell(name, 60)} {old.where}; with --name N both would run")
    session.handlers.start(
        made,
        lambda: backend.worker(
            function,
            keys=keys,
            group=group,
            concurrency=options["concurrency"],
            retry=RetryPolicy(max_attempts=attempts) if attempts else None,
            drain_timeout=DRAIN_TIMEOUT,
        ),
        live=session.in_notebook,
    )
    session.note(groups=[group])
    if not session.in_notebook:
        say(f"handler {cell(name, 60)} {made.where}: running. %abe_handlers tells how it does")
    call.result(made.worker, options["out"])


def _define(shell: InteractiveShell, body: str) -> Callable[..., Any]:
    """Run ``body`` as a cell is run and return the last function that it defines."""
    source = shell.transform_cell(body)
    filename = shell.compile.cache(source, shell.execution_count, raw_code=body)
    tree = shell.transform_ast(shell.compile.ast_parse(source, filename=filename))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    names = [node.name for node in tree.body if isinstance(node, kinds)]
    if not names:
        raise HANDLER.error("the cell must define a function: def handle(message): …")
    exec(shell.compile(tree, filename, "exec"), shell.user_global_ns, shell.user_ns)  # noqa: S102
    try:
        return check_handler(shell.user_ns[names[-1]], f"{names[-1]}()")
    except TypeError as error:
        raise HANDLER.error(str(error)) from None


def handlers(call: Call) -> Any:
    """List the handlers."""
    arguments = parse(HANDLERS, call.line, call.evaluate)
    if arguments.words:
        raise HANDLERS.error(f"{cell(arguments.words[0], 40)} is one word too many")
    found = Handlers(call.session.handlers.values())
    return call.result(found, arguments.options["out"])


def stop(call: Call) -> None:
    """Stop handlers."""
    arguments = parse(STOP, call.line, call.evaluate)
    running = call.session.handlers
    names = arguments.words
    if arguments.options["all"]:
        if names:
            raise STOP.error("give either names or --all")
        names = list(running)
    elif not names:
        if len(running) > 1:
            raise STOP.error(f"which one? There are {_list(running)}; --all stops all")
        names = list(running)
    for name in names:
        if name not in running:
            near = difflib.get_close_matches(name, running, n=1)
            hint = f"did you mean {cell(near[0], 60)}?" if near else f"there are {_list(running)}"
            raise STOP.error(f"no handler is called {cell(name, 60)}; {hint}")
    call.session.stop(dict.fromkeys(names))
    if not names:
        say("no handler is running")


def _list(names: Iterable[str]) -> str:
    return ", ".join(cell(name, 60) for name in names) or "none"
