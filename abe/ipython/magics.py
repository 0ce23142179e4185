"""The magics; the docstring of each is shown by ``%abe_publish?``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from abe.backends.message_queue.loader import choose_backend, list_backends
from abe.display.options import CHECK, ENV, Option
from abe.display.prompt import ask_missing
from abe.display.results import Backends
from abe.errors import AbeError
from abe.ipython.completion import matcher
from abe.ipython.contract import ContractMagics
from abe.ipython.grammar import OUT, Syntax, identifier
from abe.ipython.handler_magics import HandlerMagics
from abe.ipython.publish_magics import PublishMagics
from abe.ipython.queue_magics import QueueMagics
from abe.ipython.session import Call, Session, magic

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

VARIABLE = Option(
    "--in", "-i", "VAR", "Use the backend in the variable VAR instead of opening one.", identifier
)


class AbeMagics(PublishMagics, QueueMagics, HandlerMagics, ContractMagics):
    """Publish, consume, inspect and handle events in one line.

    Attributes:
        syntaxes: The arguments of each magic, by the magic as it is written.
    """

    shell: InteractiveShell
    syntaxes: ClassVar[dict[str, Syntax]] = {}

    def __init__(self, shell: InteractiveShell) -> None:
        """Belong to ``shell``."""
        super().__init__(shell)
        self.session = Session(shell, self)
        self._matcher = matcher(self.session, self.syntaxes)

    def attach(self) -> None:
        """Complete in the shell, from now on."""
        self.session.installed = sorted({info.name for info in list_backends()})
        self.shell.Completer.custom_matchers.append(self._matcher)

    def detach(self) -> None:
        """Stop completing."""
        matchers = self.shell.Completer.custom_matchers
        if self._matcher in matchers:
            matchers.remove(self._matcher)

    @magic(Syntax("%abe_backends", options=(CHECK, OUT), max_words=0))
    def abe_backends(self, call: Call) -> Any:
        """List the installed backends, which one is chosen without a name, and why.

        ::

            %abe_backends --check

        Nothing is imported, so a broken provider shows only with --check.

        Returns:
          a list of BackendInfo, shown as a table
        """
        try:
            choice = choose_backend()
            chosen, reason = choice.info.name, choice.reason
        except AbeError as error:
            chosen, reason = "", str(error)
        current = self.session.current
        notes = [f"This session is connected to {current.name}."] if current is not None else []
        found = list_backends(check=bool(call.options["check"]))
        self.session.installed = sorted({info.name for info in found})
        return call.result(Backends(found, chosen, reason, notes))

    @magic(Syntax("%abe_connect", "[NAME]", (VARIABLE, ENV, OUT), completes="backend"))
    def abe_connect(self, call: Call) -> Any:
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

        Returns:
          the SyncBackend: q.publish(…), q.take(…), q.consume(…), await q.aio.publish(…)
        """
        words, variable, settings = call.words, call.options["in"], call.options["env"]
        if len(words) > 1:
            hint = "; repeat --env before each K=V" if any("=" in word for word in words) else ""
            # Not shown: a word that was meant as K=V may hold a secret.
            raise call.syntax.error(f"only one NAME can be given{hint}")
        if variable is not None and (words or settings):
            raise call.syntax.error(
                f"-i {variable} is a backend already, so NAME and --env do not apply"
            )
        if variable is not None:
            return call.result(self.session.adopt(call.variable(variable), variable))
        env = ask_missing(settings)
        return call.result(self.session.open(words[0] if words else None, env or None))


def _register(cls: type[AbeMagics]) -> None:
    """Register the magics with IPython, whose decorators ignore base classes."""
    cls.registered = True
    cls.magics = {"line": {}, "cell": {}}
    for name in dir(cls):
        for syntax in getattr(getattr(cls, name), "syntaxes", ()):
            kind = "cell" if syntax.magic.startswith("%%") else "line"
            cls.magics[kind][name] = name
            cls.syntaxes[syntax.magic] = syntax


_register(AbeMagics)
