"""``%abe_backends`` and ``%abe_connect``."""

from __future__ import annotations

from typing import Any

from abe._redact import Variables
from abe.backends.message_queue.loader import choose_backend, list_backends
from abe.display.prompt import ask_secret
from abe.display.results import Backends
from abe.display.text import cell
from abe.errors import AbeError
from abe.ipython.grammar import Option, Syntax, env_name, identifier, parse
from abe.ipython.session import Call

__all__ = ["BACKENDS", "CONNECT", "backends", "connect"]

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


def backends(call: Call) -> Any:
    """List what is installed, which backend is chosen without a name, and why."""
    arguments = parse(BACKENDS, call.line, call.evaluate)
    if arguments.words:
        raise BACKENDS.error(f"{cell(arguments.words[0], 40)} is one word too many")
    try:
        choice = choose_backend()
        chosen, reason = choice.info.name, choice.reason
    except AbeError as error:
        chosen, reason = "", str(error)
    current = call.session.current
    notes = [f"This session is connected to {current.name}."] if current is not None else []
    found = list_backends(check=bool(arguments.options["check"]))
    call.session.installed = sorted({info.name for info in found})
    return call.result(Backends(found, chosen, reason, notes), arguments.options["out"])


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
        env = Variables((n, ask_secret(n) if value is None else value) for n, value in settings)
        backend = call.session.open(words[0] if words else None, env or None)
    return call.result(backend, options["out"])
