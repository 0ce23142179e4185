"""Find the backends of an installed provider; run in an environment that holds nothing else."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

import abe
from abe.types import MessageQueueBackendProtocol


def main(distribution: str) -> None:
    """Check that everything the distribution registers can be imported from the wheel."""
    files = {str(path) for path in metadata.files(distribution) or ()}
    backends = [it for it in abe.list_backends(check=True) if it.distribution == distribution]
    if not backends:
        sys.exit(f"smoke test: {distribution} registers no backend")
    for backend in backends:
        if backend.status != "loaded":
            sys.exit(f"smoke test: {backend.name} is {backend.status}: {backend.error}")
        (entry_point,) = metadata.distribution(distribution).entry_points.select(name=backend.name)
        backend_class = entry_point.load()
        if not issubclass(backend_class, MessageQueueBackendProtocol):
            sys.exit(f"smoke test: {backend.target} lacks a method of the contract")
        package = entry_point.module.partition(".")[0]
        if f"{package}/py.typed" not in files:
            sys.exit(f"smoke test: {package}/py.typed is missing")
        where = Path(sys.modules[package].__file__ or "")
        if not where.is_relative_to(sys.prefix):
            sys.exit(f"smoke test: {package} comes from {where}")
    print(f"{distribution} registers {', '.join(it.name for it in backends)}")


if __name__ == "__main__":
    main(sys.argv[1])
