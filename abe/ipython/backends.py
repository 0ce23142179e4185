"""``%abe_backends`` and ``%abe_connect``."""

from __future__ import annotations

import getpass
import warnings
from collections.abc import Iterable
from typing import Any

from abe.backends.message_queue.loader import BackendInfo, choose_backend, list_backends
from abe.errors import AbeError, ConfigurationError
from abe.ipython.grammar import Option, Syntax, env_name, identifier, parse
from abe.ipython.render import Table, cell, limits, plural
from abe.ipython.results import TableList
from abe.ipython.session import Call

__all__ = ["BACKENDS", "CONNECT", "Backends", "backends", "connect"]

BACKENDS = Syntax(
    "%abe_backends",
    "[--check] [-o NAME]",
    (
        Option("--check"),
        Option("--out", "-o", "NAME", identifier),
    ),
)
CONNECT = Syntax(
    "%abe_connect",
    "[NAME] [-i VAR] [--env K[=V]]… [-o NAME]",
    (
        Option("--in", "-i", "VAR", identifier),
        Option("--env", "-e", "K[=V]", env_name, repeat=True),
        Option("--out", "-o", "NAME", identifier),
    ),
)


class Backends(TableList[BackendInfo]):
    """The installed backends: a list of `abe.BackendInfo`, shown as a table."""

    def __init__(
        self, infos: Iterable[BackendInfo], chosen: str = "", notes: Iterable[str] = ()
    ) -> None:
        """Keep ``infos``.

        Args:
            infos: What is installed.
            chosen: Name of the backend that is taken if none is named.
            notes: What the table says below.
        """
        super().__init__(infos)
        self.chosen = chosen
        self.notes = tuple(notes)

    def table(self) -> Table:
        """Return what is shown."""
        rows = [
            (
                cell(info.name),
                "deprecated" if info.deprecated is not None else info.status,
                "chosen" if info.name == self.chosen else "",
                cell(f"{info.distribution} {info.version}".strip()),
                cell(info.target),
            )
            for info in self[: limits.rows]
        ]
        columns = ("backend", "status", "without a name", "distribution", "class")
        problems = [
            f"{info.name}: {info.error or info.deprecated}"
            for info in self[: limits.rows]
            if info.error or info.deprecated
        ]
        notes = [cell(note, 1000) for note in (*problems, *self.notes)]
        return Table(plural(len(self), "backend"), columns, rows, total=len(self), notes=notes)


def backends(call: Call) -> Any:
    """List what is installed, which backend is chosen without a name, and why."""
    arguments = parse(BACKENDS, call.line, call.evaluate)
    if arguments.words:
        raise BACKENDS.error(f"{cell(arguments.words[0], 40)} is one word too many")
    chosen = ""
    try:
        choice = choose_backend()
    except AbeError as error:
        notes = [f"No backend would be chosen: {error}"]
    else:
        chosen = choice.info.name
        notes = [f"Without a name {chosen} is chosen: {choice.reason}."]
    current = call.session.current
    if current is not None:
        notes.append(f"This session is connected to {current.name}.")
    found = list_backends(check=bool(arguments.options["check"]))
    call.session.installed = sorted({info.name for info in found})
    return call.result(Backends(found, chosen, notes), arguments.options["out"])


def connect(call: Call) -> Any:
    """Open the session's backend and return it."""
    arguments = parse(CONNECT, call.line, call.evaluate)
    words, options = arguments.words, arguments.options
    variable, settings = options["in"], options["env"]
    if len(words) > 1:
        hint = "; repeat --env before each K=V" if any("=" in word for word in words) else ""
        # Not shown: what was meant as K=V may hold a secret.
        raise CONNECT.error(f"only one NAME can be given{hint}")
    if variable is not None and (words or settings):
        raise CONNECT.error(f"-i {variable} is a backend already, so NAME and --env do not apply")
    if variable is not None:
        backend = call.session.adopt(call.variable(variable), variable)
    else:
        env = {name: _ask(name) if value is None else value for name, value in settings}
        backend = call.session.open(words[0] if words else None, env or None)
    return call.result(backend, options["out"])


def _ask(name: str) -> str:
    """Ask for a value without showing it."""
    try:
        with warnings.catch_warnings():
            # It falls back to showing what is typed.
            warnings.simplefilter("error", getpass.GetPassWarning)
            return getpass.getpass(f"{name}: ")
    except (EOFError, NotImplementedError, getpass.GetPassWarning):
        raise ConfigurationError(
            f"--env {name} asks for the value, and nobody can be asked here;"
            f" set {name} in the environment before the notebook is started"
        ) from None
