"""The magics; their docstrings are what ``%abe_publish?`` shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from IPython.core.magic import (
    line_cell_magic,
    line_magic,
    magics_class,
    needs_local_scope,
    no_var_expand,
)

from abe.backends.message_queue.loader import list_backends
from abe.ipython.backends import backends, connect
from abe.ipython.completion import matcher
from abe.ipython.consuming import consume
from abe.ipython.errors import short_errors
from abe.ipython.handler_magics import HandlerMagics
from abe.ipython.publishing import publish
from abe.ipython.queue_magics import QueueMagics
from abe.ipython.session import Call, Namespace, Session

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = ["AbeMagics"]


def _combined(cls: type[AbeMagics]) -> type[AbeMagics]:
    """Give ``cls`` the magics of its bases too, which IPython does not look at."""
    for base in cls.__mro__[1:]:
        for kind, names in getattr(base, "magics", {}).items():
            cls.magics[kind] = {**names, **cls.magics[kind]}
    return cls


@_combined
@magics_class
class AbeMagics(QueueMagics, HandlerMagics):
    """Publish, consume, look at and handle events in one line."""

    shell: InteractiveShell

    def __init__(self, shell: InteractiveShell) -> None:
        """Belong to ``shell``."""
        super().__init__(shell)
        self.session = Session(shell, self)
        self._matcher = matcher(self.session)

    def attach(self) -> None:
        """Complete in the shell, from now on."""
        self.session.installed = sorted({info.name for info in list_backends()})
        self.shell.Completer.custom_matchers.append(self._matcher)

    def detach(self) -> None:
        """Stop completing."""
        matchers = self.shell.Completer.custom_matchers
        if self._matcher in matchers:
            matchers.remove(self._matcher)

    @line_magic
    @no_var_expand
    @needs_local_scope
    @short_errors
    def abe_backends(self, line: str, local_ns: Namespace = None) -> Any:
        """List the installed backends, which one is chosen without a name, and why.

        ::

            %abe_backends [--check] [-o NAME]

        Nothing is imported, so a broken provider shows only with --check.

        Options:
          --check        import every backend, to see what is broken or deprecated
          -o, --out      also store the result in the variable NAME

        Returns:
          a list of BackendInfo, shown as a table
        """
        return backends(Call(self.session, "%abe_backends", line, local_ns))

    @line_magic
    @no_var_expand
    @needs_local_scope
    @short_errors
    def abe_connect(self, line: str, local_ns: Namespace = None) -> Any:
        """Open the backend that the magics of this session use, and return it.

        ::

            %abe_connect memory
            %abe_connect redis --env ABE_REDIS_URL=redis://localhost:6379
            %abe_connect redis --env ABE_REDIS_URL
            %abe_connect -i my_backend
            q = %abe_connect memory

        Without NAME the environment variable QUEUE_BACKEND decides, else the first installed
        provider, else memory. Without %abe_connect the first magic does the same. The backend
        that the magics used before is closed, unless it is a SyncBackend that you made.

        Options:
          -e, --env K=V  set an environment variable while the backend is created; repeatable.
                         With K alone you are asked for the value without echo, which keeps
                         passwords out of the notebook
          -i, --in VAR   use the backend in the variable VAR instead of opening one
          -o, --out      also store the result in the variable NAME

        Returns:
          the SyncBackend: q.publish(…), q.take(…), q.consume(…), await q.aio.publish(…)
        """
        return connect(Call(self.session, "%abe_connect", line, local_ns))

    @line_cell_magic
    @no_var_expand
    @needs_local_scope
    @short_errors
    def abe_publish(self, line: str, cell: str | None = None, local_ns: Namespace = None) -> Any:
        """Publish one message, or one for each item of a list.

        ::

            %abe_publish orders.created {"id": 1, "note": "costs $5"}
            %abe_publish orders.created {"id": {{order_id}}, "tags": {{tags}}}
            %abe_publish orders.{{region}}.created {{order}}
            %abe_publish orders.created -i orders
            %abe_publish orders.created --file orders.csv
            %abe_publish --header source=notebook --delay 60 orders.created {"id": 1}

            %%abe_publish orders.created --format jsonl
            {"id": 1}
            {"id": 2}

        PAYLOAD is JSON: an object is one message, a list of objects one message each. It is the
        rest of the line and is published exactly as it stands; only {{expr}} outside strings is
        replaced by the value of the Python expression, which may be anything that JSON can hold.
        A payload that is one {{expr}}, or -i VAR, may be a dict, a list of dicts, a generator of
        dicts or a DataFrame of pandas or polars: one message per row without the index, missing
        values as null, dates and times as ISO 8601. Options stand before KEY or between KEY and
        PAYLOAD. Everything is checked before the first message is sent. After Ctrl-C you are told
        how many were published: the first ones, in order.

        Options:
          -i, --in VAR      publish the value of the variable VAR
          -F, --file PATH   publish what a file holds: .csv, .jsonl, .json or .yaml, else --format
          -H, --header K=V  text metadata of the messages; repeatable
          -d, --delay S     deliver after S seconds at the earliest
          -f, --format F    how PAYLOAD is written: json (the default), jsonl (one object a line),
                            yaml, csv (the first line names the columns, all values are text) or
                            python (a literal). {{expr}} works in json and jsonl only
          -o, --out NAME    also store the result in the variable NAME

        Returns:
          the number of messages published
        """
        magic = "%abe_publish" if cell is None else "%%abe_publish"
        return publish(Call(self.session, magic, line, local_ns), cell)

    @line_magic
    @no_var_expand
    @needs_local_scope
    @short_errors
    def abe_consume(self, line: str, local_ns: Namespace = None) -> Any:
        """Take messages, acknowledge them and return them.

        ::

            %abe_consume
            %abe_consume orders.* -n 100 -t 2
            %abe_consume orders.eu.** payments -g billing -o messages
            messages = %abe_consume orders.*

        What is returned is acknowledged: it does not come again for this group. Each group sees
        every message that is published after its first use, and what was still kept then. Without
        KEYS every key is taken; * stands for one segment of a key and a final ** for one or more.

        Options:
          -g, --group GROUP  the consumer group (without it: the default group)
          -n, --number N     take at most N messages (10)
          -t, --timeout S    wait at most S seconds in total (5)
          -q, --quiet S      end after S seconds without a further message, once one has come (0.5)
          -o, --out NAME     also store the result in the variable NAME

        Returns:
          the Messages: a list of dicts with .key, .id, .headers …, shown as a table; .payloads are
          the bare dicts
        """
        return consume(Call(self.session, "%abe_consume", line, local_ns))
