"""A module as a new process imports it: nothing is cached, and no warning has been shown."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec
from types import ModuleType
from typing import Any


def fresh(module: ModuleType) -> Any:
    """A second copy of a module, which other modules do not see."""
    spec = module.__spec__
    assert spec is not None
    assert spec.loader is not None
    known, made = sys.modules[spec.name], module_from_spec(spec)
    sys.modules[spec.name] = made  # where decorators of its classes look for it
    try:
        spec.loader.exec_module(made)
    finally:
        sys.modules[spec.name] = known
    return made
