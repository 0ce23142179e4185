"""Completion of magics: options, backends, variables, recent keys and groups; no errors."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from IPython.core.completer import SimpleCompletion, SimpleMatcherResult, context_matcher

from abe.backends.message_queue.loader import settings_of
from abe.display.options import Option
from abe.ipython.grammar import Syntax
from abe.ipython.payloads import FORMATS
from abe.ipython.queue_magics import ACTIONS

if TYPE_CHECKING:
    from IPython.core.completer import CompletionContext

    from abe.ipython.session import Session

_CALL = re.compile(r"(?:^|[\s=])(%%?abe_\w+)\s(.*)\Z")

Matcher = Callable[["CompletionContext"], SimpleMatcherResult]


def matcher(session: Session, syntaxes: Mapping[str, Syntax]) -> Matcher:
    """Return a matcher for ``shell.Completer.custom_matchers``."""

    @context_matcher(identifier="abe")  # type: ignore[untyped-decorator]
    def abe_matcher(context: CompletionContext) -> SimpleMatcherResult:
        try:
            found, token = _complete(session, syntaxes, context)
        except Exception:  # it would be printed into the notebook
            return SimpleMatcherResult(completions=[])
        return SimpleMatcherResult(
            completions=[SimpleCompletion(text=text, type="abe") for text in found],
            matched_fragment=token,
            suppress=bool(found),
        )

    made: Matcher = abe_matcher
    return made


def _complete(
    session: Session, syntaxes: Mapping[str, Syntax], context: CompletionContext
) -> tuple[list[str], str]:
    call = _CALL.search(context.text_until_cursor)
    syntax = syntaxes.get(call[1]) if call is not None else None
    if call is None or syntax is None:
        return [], ""
    words = re.split(r"\s+", call[2])
    token, before = words[-1], words[:-1]
    return _candidates(session, syntax, before, token), token


def _candidates(session: Session, syntax: Syntax, before: list[str], token: str) -> list[str]:
    names = syntax.names
    words = _positional(names, before)
    if syntax.payload and len(words) > 1:
        return []  # the payload has begun
    option = names.get(before[-1]) if before else None
    if option is not None and option.metavar:
        return _starting(token, _values(session, option, words))
    if token.startswith("-"):
        name, equals, value = token.partition("=")
        if equals and name in names:
            return [f"{name}={v}" for v in _starting(value, _values(session, names[name], words))]
        given = set(before)
        unused = [o.long for o in syntax.options if o.repeat or not given & {o.long, o.short}]
        return _starting(token, unused)
    return _starting(token, _words(session, syntax, words))


def _positional(names: dict[str, Option], before: list[str]) -> list[str]:
    """Return the words that are neither options nor their values."""
    words: list[str] = []
    skip = False
    for word in before:
        option = names.get(word)
        if not skip and option is None and word and not word.startswith("-"):
            words.append(word)
        skip = not skip and option is not None and bool(option.metavar)
    return words


def _words(session: Session, syntax: Syntax, words: list[str]) -> Iterable[str]:
    many = {"keys": session.keys, "handlers": session.handlers}
    if syntax.completes in many:
        return [name for name in many[syntax.completes] if name not in words]
    if words:
        return ()
    if syntax.payload:
        return session.keys
    if syntax.completes == "target":
        return [*session.installed, *_variables(session, classes=True)]
    return {"action": ACTIONS, "backend": session.installed}.get(syntax.completes, ())


def _values(session: Session, option: Option, words: list[str]) -> Iterable[str]:
    if option.long == "--group":
        return session.groups
    if option.long == "--format":
        return FORMATS
    if option.long == "--env":
        return [f"{it.name}=" for it in settings_of(words[0] if words else None)]
    if option.long == "--in":
        return _variables(session)
    return ()


def _variables(session: Session, *, classes: bool = False) -> Iterable[str]:
    hidden: dict[str, Any] = session.shell.user_ns_hidden
    return [
        name
        for name, value in list(session.shell.user_ns.items())
        if not name.startswith("_")
        and name not in hidden
        and (isinstance(value, type) if classes else not callable(value))
    ]


def _starting(token: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(token) and name != token]
