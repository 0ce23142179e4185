"""The backend that the magics of one IPython session share."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from IPython.core.error import UsageError

from abe.display.text import cell
from abe.ipython.errors import short
from abe.ipython.expressions import Evaluate, evaluator
from abe.ipython.registry import Registry

if TYPE_CHECKING:
    from IPython.core.interactiveshell import ExecutionInfo, InteractiveShell

    from abe.backends.message_queue.loader import Choice
    from abe.ipython.settings import Settings
    from abe.sync import SyncBackend

__all__ = ["Call", "Namespace", "Session", "say"]

Namespace: TypeAlias = dict[str, Any] | None
"""The local variables where a magic was called."""


def say(text: str) -> None:
    """Tell the user something that is not the value of the magic."""
    print(text)  # noqa: T201


class Seen:
    """The names seen last, each once; bounded."""

    def __init__(self, most: int = 500) -> None:
        """Remember nothing yet, and never more than ``most``."""
        self._most = most
        self._names: dict[str, None] = {}

    def add(self, names: Iterable[str | None]) -> None:
        """Remember ``names``."""
        for name in names:
            if name:
                self._names.pop(name, None)
                self._names[name] = None
        for name in list(self._names)[: -self._most]:
            del self._names[name]

    def __iter__(self) -> Iterator[str]:
        return reversed(list(self._names))


class Session:
    """What outlives a single magic: the open backend, and who opened it."""

    def __init__(self, shell: InteractiveShell, settings: Settings) -> None:
        """Belong to ``shell``; nothing is opened yet."""
        self.shell = shell
        self.settings = settings
        self.handlers = Registry()
        self.keys = Seen()
        self.groups = Seen()
        self.installed: list[str] = []
        self.current: SyncBackend | None = None
        self._owned = False
        self._source: object = None
        self._cell = ""
        shell.events.register("pre_run_cell", self._remember_cell)
        shell.events.register("post_run_cell", self._refresh_cards)

    def backend(self) -> SyncBackend:
        """Return the session's backend; the first call without ``%abe_connect`` selects it."""
        if self.current is None:
            return self.open(None)
        return self.current

    def note(self, keys: Iterable[str | None] = (), groups: Iterable[str | None] = ()) -> None:
        """Remember keys and groups, for completion."""
        self.keys.add(keys)
        self.groups.add(groups)

    def open(self, name: str | None, env: Mapping[str, str] | None = None) -> SyncBackend:
        """Open the backend called ``name``, or select one and say which and why."""
        from abe.backends.message_queue.loader import choose_backend
        from abe.sync import connect

        choice = choose_backend(name, env=env)
        backend = connect(choice.info.name, env=env)
        self._replace(backend, owned=True)
        if name is None:
            say(_announcement(choice))
        return backend

    def adopt(self, value: object, variable: str) -> SyncBackend:
        """Use the backend ``value`` of the user.

        An open `SyncBackend` remains the user's to close. A bare backend is the session's from now
        on, because its connections belong to the event loop that `abe.connect` runs it on.
        """
        from abe.sync import SyncBackend, connect

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
        """Whether what was displayed can be updated."""
        return getattr(self.shell, "kernel", None) is not None

    def stop(self, names: Iterable[str]) -> None:
        """Stop handlers and say what they have done."""
        for handler in self.handlers.stop(names):
            say(f"stopped {cell(handler.name, 60)}: {handler.summary()}")

    def close(self) -> None:
        """Stop the handlers and let go of the backend; close it if it is the session's.

        After an interrupt both go on in the background.
        """
        backend, self.current = self.current, None
        self._source = None
        try:
            if backend is not None and self._owned:
                backend.close()  # which waits for the handlers
        except KeyboardInterrupt:
            self.handlers.forget()
            raise
        finally:
            self.handlers.close()

    def end(self) -> None:
        """Close the backend and leave nothing behind in the shell."""
        self.shell.events.unregister("pre_run_cell", self._remember_cell)
        self.shell.events.unregister("post_run_cell", self._refresh_cards)
        self.close()

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

    def _refresh_cards(self, result: object) -> None:
        for handler in self.handlers.values():
            handler.card.refresh()

    def is_last_line(self, line: str) -> bool:
        """Whether ``line`` is the last one of the running cell and stands nowhere else in it."""
        code = self._cell.strip()
        return code.count(line) == 1 and code.rpartition("\n")[2].strip() == line


def _announcement(choice: Choice) -> str:
    info = choice.info
    origin = f"{info.distribution} {info.version}".strip()
    return (
        f"abe: using backend {cell(info.name)} of {cell(origin)}: {cell(choice.reason, 300)}."
        " %abe_connect NAME opens another."
    )


class Call:
    """One use of a magic: its name, its line and the names it can see."""

    def __init__(
        self, session: Session, magic: str, line: str, local_ns: dict[str, Any] | None
    ) -> None:
        """Describe the call of ``magic`` (as it is written, e.g. ``%abe_publish``)."""
        self.session = session
        self.magic = magic
        self.line = line
        self._local_ns = local_ns or {}
        self.evaluate: Evaluate = evaluator(session.shell.user_ns, local_ns)

    @property
    def scopes(self) -> tuple[dict[str, Any], ...]:
        """The variables that the call can see, the nearest first."""
        return self._local_ns, self.session.shell.user_ns

    def variable(self, name: str) -> Any:
        """Return the value of the user's variable ``name``.

        Raises:
            NameError: If there is none, with the nearest spelling.
        """
        scopes = self.scopes
        for scope in scopes:
            if name in scope:
                return scope[name]
        names = {n for scope in scopes for n in scope if not n.startswith("_")}
        near = difflib.get_close_matches(name, sorted(names), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise short(NameError(f"name {name!r} is not defined{hint}"))

    def group(self, given: str | None) -> str | None:
        """Return the group that ``-g`` or the settings name; ``-g ""`` is the default group."""
        return (self.session.settings.group if given is None else given) or None

    def result(self, value: Any, out: str | None = None) -> Any:
        """Return ``value`` for ``x = %magic``, after storing it for ``-o NAME``.

        A bare ``%magic …;`` at the end of a cell gives ``None``, so that nothing is displayed.
        What could be assigned is never withheld: taken messages would be lost.
        """
        if out is not None:
            self.session.shell.user_ns[out] = value
        written = f"{self.magic} {self.line}".strip()
        silent = written.endswith(";") and self.session.is_last_line(written)
        return None if silent else value
