"""distdl: one YAML file trains any architecture family on any number of GPUs.

    import distdl
    run = distdl.train("configs/families/mlp.yaml", overrides={"train.epochs": 3})

Importing it imports nothing else: what `distdl.train` and the others need is loaded when they are called.
"""

import importlib
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    **dict.fromkeys(("Run", "evaluate", "load", "open_run", "plan", "resume", "train"), "distdl.api"),
    **dict.fromkeys(("DataCorrupt", "DistdlError", "InputError", "TrainingFailed"), "distdl.errors"),
}
"""Public name -> the module that has it; `__init__.pyi` says the same to type checkers."""

__all__ = ["DataCorrupt", "DistdlError", "InputError", "Run", "TrainingFailed", "evaluate", "load", "open_run", "plan"]
__all__ += ["resume", "train"]


class _RoomAndVerb(ModuleType):
    """A package whose name is a verb of the interface, too: `distdl.plan` holds the planner, `distdl.plan(config)` plans.

    Importing a submodule puts its package in the place of whatever had that name here, so the package itself is called.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._verb(*args, **kwargs)

    @property
    def _verb(self) -> Any:
        return __getattr__(self.__name__.rpartition(".")[2])

    @property
    def __doc__(self) -> str:  # type: ignore[override]
        return str(self._verb.__doc__)

    @property
    def __signature__(self) -> Any:
        """What help() and an editor show."""
        return importlib.import_module("inspect").signature(self._verb)


for _room in ("plan", "train"):
    importlib.import_module(f"distdl.{_room}").__class__ = _RoomAndVerb  # the files are empty: nothing else is loaded


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'distdl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
