"""The magics for handlers and for authors of backends; their docstrings are what ``?`` shows."""

from __future__ import annotations

from typing import Any

from IPython.core.magic import (
    cell_magic,
    line_magic,
    magics_class,
    needs_local_scope,
    no_var_expand,
)

from abe.ipython.contract import contract
from abe.ipython.errors import short_errors
from abe.ipython.handlers import handler, handlers, stop
from abe.ipython.session import Call, Namespace, Session
from abe.ipython.settings import Settings

__all__ = ["HandlerMagics"]


@magics_class
class HandlerMagics(Settings):
    """Handle messages in the background, and prove backends."""

    session: Session

    @cell_magic
    @no_var_expand
    @needs_local_scope
    @short_errors
    def abe_handler(self, line: str, cell: str, local_ns: Namespace = None) -> Any:
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
        it raises, the message comes again later, and after the last attempt it becomes a dead
        letter (see %abe_dead). raise abe.Reject("why") gives up at once, raise abe.Retry(delay=5)
        asks for another try. What the function prints appears below this cell, beside a card with
        its counters. A handler of the same name is replaced, so the cell can be run again;
        %abe_stop, another %abe_connect, %unload_ext and the end of the kernel stop it.

        A sync function runs in a thread of its own. An async function shares one event loop with
        everything else of abe: it must not block, and awaits q.aio instead of calling q.

        Options:
          -g, --group GROUP     the consumer group (without it: the default group)
          --name N              what %abe_handlers and %abe_stop call it (the function's name)
          -c, --concurrency C   handle C messages at a time (1)
          -a, --max-attempts A  give a message up when it has failed A times (5)
          -o, --out NAME        store the worker in the variable NAME: .processed, .last_error,
                                .stop() …
        """
        return handler(Call(self.session, "%%abe_handler", line, local_ns), cell)

    @line_magic
    @no_var_expand
    @needs_local_scope
    @short_errors
    def abe_handlers(self, line: str, local_ns: Namespace = None) -> Any:
        """List the handlers that %%abe_handler has started, and how they do.

        ::

            %abe_handlers [-o NAME]

        One that has failed for good stays in the list, with its error, until it is replaced or
        stopped.

        Options:
          -o, --out NAME     also store the result in the variable NAME

        Returns:
          a list with .name and .worker (.processed, .failed, .last_error …), shown as a table
        """
        return handlers(Call(self.session, "%abe_handlers", line, local_ns))

    @line_magic
    @no_var_expand
    @needs_local_scope
    @short_errors
    def abe_stop(self, line: str, local_ns: Namespace = None) -> None:
        """Stop handlers that %%abe_handler has started.

        ::

            %abe_stop
            %abe_stop bill
            %abe_stop --all

        Messages in flight are finished first, for at most 10 seconds (1 second when the kernel
        ends); what is not settled then comes again. Without a name the only handler is stopped.

        Options:
          --all              stop all of them
        """
        stop(Call(self.session, "%abe_stop", line, local_ns))

    @line_magic
    @no_var_expand
    @needs_local_scope
    @short_errors
    def abe_contract(self, line: str, local_ns: Namespace = None) -> Any:
        """Run the contract suite on a backend, installed or defined in a cell.

        ::

            %abe_contract memory
            %abe_contract MyBackend
            %abe_contract MyBackend --select redelivery --select "group*"
            report = %abe_contract redis --env ABE_REDIS_URL=redis://localhost:6379

        The suite checks what every backend must do, and what this one declares in its capabilities;
        what does not apply is skipped, with the reason. A class is made with from_env(). Instead of
        a class, a function that makes a backend, a Harness or a BackendContract will do as well.
        A failed case is a result, not an error: to stop a notebook, write assert report.ok.

        Options:
          -s, --select P     only cases whose name contains P, or matches it with * and ?;
                             repeatable
          -e, --env K=V      a variable for an installed backend, e.g. where its broker is;
                             repeatable. {namespace} in V stands for what keeps the cases apart,
                             {folder} for a temporary folder
          -o, --out NAME     also store the result in the variable NAME

        Returns:
          the rows, shown as a table with failures first; .ok, .report
        """
        return contract(Call(self.session, "%abe_contract", line, local_ns))
