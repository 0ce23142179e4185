"""The contract suite: prove that a backend does what its capabilities say.

Under pytest, subclass `BackendContract` and `ConsumerContract` and give them a `Harness`::

    from abe.testing import BackendContract, Harness


    class MyHarness(Harness):
        def make(self, namespace):
            return MyBackend(prefix=namespace)


    class TestMyBackend(BackendContract):
        harness = MyHarness

Without pytest, `run_contract` does the same and returns a `ContractReport`. Installed backends run
with ``pytest --abe-backend=NAME`` or ``abe contract NAME``. `list_cases` is the specification:
every obligation with the capabilities and hooks it depends on. `Histories` plays random histories.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from abe.testing.case import Case
    from abe.testing.contract import BackendContract, ConsumerContract, list_cases
    from abe.testing.harness import GROUPS, Harness
    from abe.testing.model import Histories
    from abe.testing.report import ContractReport, ContractRow
    from abe.testing.run import run_contract

__all__ = [
    "BackendContract",
    "Case",
    "ConsumerContract",
    "ContractReport",
    "ContractRow",
    "GROUPS",
    "Harness",
    "Histories",
    "list_cases",
    "run_contract",
]

_MODULES = {
    "BackendContract": "contract",
    "ConsumerContract": "contract",
    "ContractReport": "report",
    "ContractRow": "report",
    "GROUPS": "harness",
    "Case": "case",
    "Harness": "harness",
    "Histories": "model",
    "list_cases": "contract",
    "run_contract": "run",
}


def __getattr__(name: str) -> Any:
    # Lazy: abe's pytest plugin is imported by every pytest run of an environment with abe in it.
    if name not in _MODULES:
        raise AttributeError(f"module 'abe.testing' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"abe.testing.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
