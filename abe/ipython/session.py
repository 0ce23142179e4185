"""The state that the magics of one IPython session share, and one use of a magic."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from IPython.core.error import UsageError
from IPython.core.magic import Magics, needs_local_scope, no_var_expand
from traitlets import Float, Int, Unicode, observe

from abe.backends.message_queue.loader import choose_backend
from abe.display.text import MAX_CELL, MAX_ROWS, cell, did_you_mean, limits
from abe.errors import AbeError, BackendClosedError
from abe.ipython.errors import short
from abe.ipython.expressions import Evaluate, evaluator
from abe.ipython.grammar import Syntax, parse
from abe.ipython.handlers import Handlers
from abe.sync import SyncBackend, connect

if TYPE_CHECKING:
    from IPython.core.interactiveshell import ExecutionInfo, InteractiveShell

Namespace: TypeAlias = dict[str, Any] | None
"""The local variables where a magic was called."""


def say(text: str) -> None:
    """Print a remark beside the value of the magic."""
    print(text)  # noqa: T201


class Settings(Magics):
    """The options of the magics that ``%config AbeMagics`` shows and sets."""

    group = Unicode("", help="The group without -g; empty for the default group.").tag(config=True)
    limit = Int(10, min=1, help="Messages taken or shown at most, without -n.").tag(config=True)
    timeout = Float(5.0, min=0.0, help="Seconds that %abe_consume waits, without -t.").tag(
        config=True
    )
    quiet = Float(
        0.5, min=0.0, help="Seconds without a message that end %abe_consume, without -q."
    ).tag(config=True)
    rows = Int(MAX_ROWS, min=1, max=10_000, help="Maximum rows of a table.").tag(config=True)
    cell_length = Int(MAX_CELL, min=10, max=100_000, help="Maximum characters of a cell.").tag(
        config=True
    )
    refresh = Float(0.5, min=0.1, help="Seconds between two updates of a %%abe_handler.").tag(
        config=True
    )

    session: Session

    @observe("rows", "cell_length")
    def _set_limits(self, change: Any) -> None:
        limits.rows, limits.cell = self.rows, self.cell_length


def _newest_first(old: list[str], new: Iterable[str | None]) -> list[str]:
    """Return the last distinct names, at most 500."""
    return list(dict.fromkeys([*reversed([it for it in new if it]), *old]))[:500]


class Session:
    """The open backend and the running handlers of one shell."""

    def __init__(self, shell: InteractiveShell, settings: Settings) -> None:
        """Belong to ``shell``; nothing is opened yet."""
        self.shell = shell
        self.settings = settings
        self.handlers = Handlers()
        self.keys: list[str] = []
        self.groups: list[str] = []
        self.installed: list[str] = []
        self.current: SyncBackend | None = None
        self._owned = False
        self._source: object = None
        self._cell = ""
        shell.events.register("pre_run_cell", self._remember_cell)
        shell.events.register("post_run_cell", self._refresh_handlers)

    def backend(self) -> SyncBackend:
        """Return the session's backend; the first call without ``%abe_connect`` selects it."""
        if self.current is None:
            return self.open(None)
        return self.current

    def note(self, keys: Iterable[str | None] = (), groups: Iterable[str | None] = ()) -> None:
        """Remember keys and groups, for completion."""
        self.keys = _newest_first(self.keys, keys)
        if groups:
            self.groups = _newest_first(self.groups, groups)

    def open(self, name: str | None, env: Mapping[str, str] | None = None) -> SyncBackend:
        """Open the backend called ``name``, or select one and print the choice and its reason."""
        choice = choose_backend(name, env=env)
        backend = connect(choice.info.name, env=env)
        self._replace(backend, owned=True)
        if name is None:
            origin = f"{choice.info.distribution} {choice.info.version}".strip()
            why = f"{cell(choice.info.name)} of {cell(origin)}: {cell(choice.reason, 300)}"
            say(f"abe: using backend {why}. %abe_connect NAME opens another.")
        return backend

    def adopt(self, value: object, variable: str) -> SyncBackend:
        """Use the backend ``value`` of the user.

        An open `SyncBackend` remains the user's to close. A bare backend is the session's from now
        on, because its connections belong to the event loop that `abe.connect` runs it on.
        """
        if self.current is not None and value is self._source and not self.current.closed:
            return self.current
        if isinstance(value, str):
            raise UsageError(f"{variable} is a str; write %abe_connect {{{{{variable}}}}}")
        if isinstance(value, SyncBackend):
            if value.closed:
                raise UsageError(f"{variable} is closed; %abe_connect NAME opens another")
            self._replace(value, owned=False)
            return value
        try:
            backend = connect(value)  # type: ignore[arg-type]  # it checks
        except TypeError as error:
            raise UsageError(f"{variable} is not a backend: {error}") from None
        self._replace(backend, owned=True)
        self._source = value
        return backend

    @property
    def in_notebook(self) -> bool:
        """Whether a display can be updated."""
        return getattr(self.shell, "kernel", None) is not None

    def stop(self, names: Iterable[str]) -> None:
        """Stop handlers and print their counters."""
        for handler in self.handlers.stop(names):
            say(f"stopped {cell(handler.name, 60)}: {handler.summary()}")

    def end(self) -> None:
        """Leave nothing behind in the shell; close the backend, if it is the session's.

        After an interrupt the handlers and the backend end in the background.
        """
        self.shell.events.unregister("pre_run_cell", self._remember_cell)
        self.shell.events.unregister("post_run_cell", self._refresh_handlers)
        backend, self.current = self.current, None
        self._source = None
        try:
            if backend is not None and self._owned:
                backend.close()  # which waits for the handlers
        except KeyboardInterrupt:
            self.handlers.clear()  # their displays are updated to the end
            raise
        finally:
            self.handlers.close()

    def _replace(self, backend: SyncBackend, *, owned: bool) -> None:
        old, old_owned = self.current, self._owned
        if old is not backend:
            self.stop(list(self.handlers))
        self.current = backend
        self._owned = owned or (old is backend and old_owned)
        self._source = None
        if old is not None and old is not backend and old_owned:
            old.close()

    def _remember_cell(self, info: ExecutionInfo) -> None:
        self._cell = info.raw_cell or ""

    def _refresh_handlers(self, result: object) -> None:
        for handler in self.handlers.values():
            handler.refresh()

    def is_last_line(self, line: str) -> bool:
        """Whether ``line`` is the last one of the running cell and stands nowhere else in it."""
        code = self._cell.strip()
        return code.count(line) == 1 and code.rpartition("\n")[2].strip() == line


class Call:
    """One use of a magic: its arguments and the names that it can see.

    Attributes:
        session: The session it belongs to.
        body: The body of the cell; ``None`` for a line magic.
        words: Arguments that are not options, ``{{expr}}`` evaluated.
        options: Value of each option by name, defaults included.
        payload: The text behind KEY, verbatim; ``None`` if there is none.
    """

    def __init__(
        self, session: Session, syntax: Syntax, line: str, body: str | None, local_ns: Namespace
    ) -> None:
        self.session = session
        self.syntax = syntax
        self.body = body
        self._written = f"{syntax.magic} {line}".strip()
        self._local_ns = local_ns or {}
        self.evaluate: Evaluate = evaluator(session.shell.user_ns, local_ns)
        arguments = parse(syntax, line, self.evaluate)
        self.words = arguments.words
        self.options = arguments.options
        self.payload = arguments.payload

    @property
    def scopes(self) -> tuple[dict[str, Any], ...]:
        """The variables that the call can see, the nearest first."""
        return self._local_ns, self.session.shell.user_ns

    @property
    def group(self) -> str | None:
        """The group that ``-g`` or the settings name; ``-g ""`` is the default group."""
        given = self.options["group"]
        return (self.session.settings.group if given is None else given) or None

    def variable(self, name: str) -> Any:
        """Return the value of the user's variable ``name``."""
        scopes = self.scopes
        for scope in scopes:
            if name in scope:
                return scope[name]
        names = sorted({n for scope in scopes for n in scope if not n.startswith("_")})
        raise short(NameError(f"name {name!r} is not defined{did_you_mean(name, names)}"))

    def result(self, value: Any) -> Any:
        """Return ``value`` for ``x = %magic``, after storing it for ``-o NAME``.

        A bare ``%magic …;`` at the end of a cell gives ``None``, so that nothing is displayed.
        A value that could be assigned is always returned: taken messages would be lost.
        """
        if self.options["out"] is not None:
            self.session.shell.user_ns[self.options["out"]] = value
        silent = self._written.endswith(";") and self.session.is_last_line(self._written)
        return None if silent else value


def magic(*syntaxes: Syntax) -> Callable[[Callable[[Any, Call], Any]], Callable[..., Any]]:
    """Decorate a method of a `Magics` class as a line magic, a cell magic, or both in this order.

    The method gets the parsed `Call`. An `AbeError` that it raises, and an interrupt, is shown
    short.
    """

    def decorate(body: Callable[[Any, Call], Any]) -> Callable[..., Any]:
        @no_var_expand
        @needs_local_scope
        @functools.wraps(body)
        def run(self: Any, line: str, cell: str | None = None, local_ns: Namespace = None) -> Any:
            try:
                syntax = syntaxes[0 if cell is None else -1]
                return body(self, Call(self.session, syntax, line, cell, local_ns))
            except AbeError as error:
                closed = isinstance(error, BackendClosedError)
                hints = ["%abe_connect opens another."] if closed else []
                raise short(error, *hints) from error.__cause__
            except KeyboardInterrupt as error:
                short(error)
                raise

        run.__doc__ = syntaxes[0].document(body.__doc__ or "")
        run.syntaxes = syntaxes  # type: ignore[attr-defined]
        decorated: Callable[..., Any] = run
        return decorated

    return decorate
