"""Settings: one declaration for each variable that configures a backend.

From a backend's ``settings`` come ``from_env``, its errors, the tables of the documentation,
completion, and the refusal of variables that nothing reads.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from abe.errors import ConfigurationError

__all__ = ["Setting", "check_settings", "naming_variables", "read_settings"]

_FLAGS = {
    **dict.fromkeys(("0", "false", "no", "off"), False),
    **dict.fromkeys(("1", "true", "yes", "on"), True),
}

_PLAIN: tuple[type, ...] = (str, int, float, bool)

Parser = Callable[[str], Any]


@dataclass(frozen=True, slots=True)
class Setting:
    """An environment variable, and the constructor's argument that it sets.

    Attributes:
        name: The variable, ``ABE_<PROVIDER>_<SETTING>``.
        type: ``str``, ``int``, ``float``, ``bool``, a tuple of the texts allowed, or a function
            that converts the text and raises `ValueError` with the form that it must have.
        default: The argument if the variable is unset or empty.
        unit: Unit of a number, e.g. ``"s"``.
        help: What it is, as the documentation says it.
        secret: Whether its value must not be shown.
        argument: The constructor's argument; by default the part of ``name`` after the provider,
            in lower case.
        minimum: The least number allowed.
        maximum: The greatest number allowed.
        sample: An example of a value, for the documentation.
        default_text: What the documentation says of the default; by default the value.
    """

    name: str
    type: type | tuple[str, ...] | Parser = str
    default: Any = None
    unit: str = ""
    help: str = ""
    secret: bool = False
    argument: str = ""
    minimum: float = 0.0
    maximum: float = sys.float_info.max
    sample: str = ""
    default_text: str = ""

    def __post_init__(self) -> None:
        if not self.argument:
            object.__setattr__(self, "argument", self.name.split("_", 2)[-1].lower())

    @property
    def form(self) -> str:
        """What a value must look like, in words."""
        if isinstance(self.type, tuple):
            return " or ".join(self.type)
        if self.type is bool:
            return "1 or 0"
        if self.type is int or self.type is float:
            noun = "a whole number" if self.type is int else "a number"
            unit = " s" if self.unit == "s" else ""
            if self.maximum < sys.float_info.max:
                return f"{noun}, {self.minimum:g} to {self.maximum:g}{unit}"
            return f"{noun}, {self.minimum:g}{unit} or more"
        return "text"

    def parse(self, text: str) -> Any:
        """Return the value that ``text`` stands for.

        Raises:
            ConfigurationError: If it is malformed; the error names the variable.
        """
        value: Any = text
        if self.type is bool:
            value = _FLAGS.get(text.lower(), text)
        elif isinstance(self.type, tuple):
            value = next((it for it in self.type if it.lower() == text.lower()), text)
        elif self.type is int or self.type is float:
            with suppress(ValueError):
                value = self.type(text)
        return self._checked(value, self.name, text)

    def check(self, value: Any) -> Any:
        """Return ``value``, converted if `type` is a function.

        Raises:
            ConfigurationError: If it is not allowed; the error names the constructor's argument.
        """
        return self._checked(value, self.argument, value)

    def _checked(self, value: Any, label: str, given: object) -> Any:
        form = self.form
        if isinstance(self.type, tuple) or self.type in _PLAIN:
            if self._fits(value):
                return value
        else:
            try:
                return self.type(value)
            except ValueError as error:
                form = str(error)
        # What has an at sign may be a URL with a password.
        shown = "malformed" if self.secret or "@" in str(given) else ascii(given)
        raise ConfigurationError(f"{label} is {shown}; it must be {form}")

    def _fits(self, value: Any) -> bool:
        if isinstance(self.type, tuple):
            return value in self.type
        if self.type is int or self.type is float:
            numbers = int if self.type is int else int | float
            return isinstance(value, numbers) and self.minimum <= value <= self.maximum
        return isinstance(self.type, type) and isinstance(value, self.type)


def read_settings(settings: Iterable[Setting]) -> dict[str, Any]:
    """Return the constructor's arguments, from the environment.

    Raises:
        ConfigurationError: If a variable is malformed.
    """
    texts = {setting: os.environ.get(setting.name, "") for setting in settings}
    return {s.argument: s.parse(text) if text else s.default for s, text in texts.items()}


def check_settings(settings: Iterable[Setting], **arguments: Any) -> None:
    """Check a constructor's arguments by the rules of the variables; defaults pass.

    Raises:
        ConfigurationError: If one is not allowed; the error names the argument.
    """
    for setting in settings:
        if arguments.get(setting.argument, setting.default) != setting.default:
            setting.check(arguments[setting.argument])


@contextmanager
def naming_variables(settings: Iterable[Setting], **more: str) -> Iterator[None]:
    """Let a `ConfigurationError` about a constructor's arguments name their variables instead.

    Replaced are the first word of the text, and every word with an underscore.

    Args:
        settings: Which variable sets which argument.
        more: The same for arguments that have no setting of their own.
    """
    try:
        yield
    except ConfigurationError as error:
        names = {**{s.argument: s.name for s in settings}, **more}
        old = str(error)
        new = re.sub(r"\A\w+|\b\w+_\w+", lambda word: names.get(word[0], word[0]), old)
        if new == old:
            raise
    else:
        return
    raise ConfigurationError(new)
