"""``python -m abe`` is the command ``abe``."""

from __future__ import annotations

import sys

from abe.cli import main

if __name__ == "__main__":
    sys.exit(main())
