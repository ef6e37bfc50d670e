"""A module whose name is a function in another library: a call of the module says what to call instead."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import NoReturn


class UncallableModule(ModuleType):
    """A module that raises TypeError with ``remedy`` if it is called."""

    remedy: str

    def __call__(self, *_: object, **__: object) -> NoReturn:
        raise TypeError(f"{self.__name__} is a module: {self.remedy}")


def explain_calls(module: str, remedy: str) -> None:
    """Let calls of an imported module raise TypeError with ``remedy``."""
    found = sys.modules[module]
    found.__class__ = UncallableModule
    found.__dict__["remedy"] = remedy
