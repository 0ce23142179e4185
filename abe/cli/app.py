"""The application: its commands and their exit status."""

from __future__ import annotations

import inspect
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from abe._version import __version__
from abe.cli.commands import COMMANDS
from abe.cli.contract import contract
from abe.cli.doctor import doctor
from abe.cli.output import OutputClosed, emit_line, say
from abe.cli.scaffold import new_provider
from abe.cli.session import Terminated, terminate
from abe.cli.worker import run as run_worker
from abe.errors import AbeError

INTERRUPTED, UNREAD, TERMINATED = 130, 141, 143


@contextmanager
def _ended() -> Iterator[None]:
    """Turn the failure of a command into one line and an exit status."""
    try:
        yield
    except OutputClosed:
        raise typer.Exit(UNREAD) from None
    except Terminated:
        raise typer.Exit(TERMINATED) from None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except AbeError as error:
        say(f"abe: {str(error) or type(error).__name__}")
        raise typer.Exit(1) from None


class Commands(TyperGroup):
    """Commands, and ``--version`` which acts during parsing, share one handling of errors."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the options before the command."""
        with _ended():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        with _ended():
            return super().invoke(ctx)


app = typer.Typer(
    name="abe",
    cls=Commands,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        emit_line(f"abe {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", is_eager=True, callback=_show_version),
    ] = False,
) -> None:
    """Publish, inspect and consume messages of any backend.

    Data goes to standard output, everything else to standard error. Exit status: 0 if all went
    well, 1 after an error, 2 after a wrong argument.
    """


def _help(command: Callable[..., None]) -> str:
    """Return the docstring, its indented paragraphs kept from wrapping."""
    paragraphs = inspect.cleandoc(command.__doc__ or "").split("\n\n")
    return "\n\n".join(f"\b\n{it}" if it.startswith(" ") else it for it in paragraphs)


_ALL: tuple[Callable[..., None], ...] = (*COMMANDS, doctor, run_worker, contract, new_provider)
for _command in _ALL:
    app.command(help=_help(_command))(_command)


def run() -> int:
    """Run the command line of this process and return its exit status."""
    signal.signal(signal.SIGTERM, terminate)
    try:
        app(prog_name="abe")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0
