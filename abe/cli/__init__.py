"""The command ``abe``."""

from __future__ import annotations

import sys

__all__ = ["main"]

INTERRUPTED = 130


def main() -> int:
    """Run the command line of this process and return its exit status.

    Returns:
        0 if all went well, 1 after an error, 2 after a wrong argument, 130 after Ctrl-C, 141 if the
        reader of the output has gone, 143 after SIGTERM.
    """
    try:
        from abe.cli.app import run

        return run()
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "typer":
            raise
        text = 'abe: the command line needs typer; from the checkout: pip install -e ".[cli]"'
        print(text, file=sys.stderr)  # noqa: T201
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED
