"""Discovery: what the modules of a folder declare, by name. Nothing is listed twice, and no name has two meanings."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

T = TypeVar("T")


def modules(package: str, skip: Sequence[str] = ()) -> list[ModuleType]:
    """The modules of a package and of the folders in it, imported; without those folders of it that ``skip`` names."""
    root = importlib.import_module(package)
    found: list[ModuleType] = []
    for one in sorted(pkgutil.iter_modules(root.__path__), key=lambda one: one.name):
        name = f"{package}.{one.name}"
        if one.name in skip:
            continue
        if one.ispkg:
            found += modules(name)
        else:
            found.append(importlib.import_module(name))
    return found


def discover(package: str, kind: type[T], names: Callable[[T], Sequence[str]]) -> dict[str, T]:
    """The objects of a kind at the top of a package's modules, each by all of its names, in order of the modules.

    Raises:
        TypeError: two objects have one name; names both files.
    """
    return _registered(
        ((one, module) for module in modules(package) for one in _declared(module, kind)), names
    )


def discover_classes(
    package: str, base: type[T], names: Callable[[type[T]], Sequence[str]]
) -> dict[str, type[T]]:
    """The subclasses of a class that a package's modules define, likewise.

    Raises:
        TypeError: two classes have one name; names both files.
    """
    found = (
        (one, module)
        for module in modules(package)
        for one in vars(module).values()
        if isinstance(one, type) and issubclass(one, base) and one.__module__ == module.__name__
    )
    return _registered(found, names)


def file_of(declared: Any) -> str:
    """The file of a module, a class or a function, from the package on, for a message."""
    import inspect  # takes long to import, and is only needed for a message

    path = Path(inspect.getsourcefile(declared) or "?")
    package = __name__.partition(".")[0]
    parts = path.parts
    return "/".join(parts[parts.index(package) :]) if package in parts else str(path)


def _declared(module: ModuleType, kind: type[T]) -> Iterator[T]:
    """The objects of a kind, each once, whatever it is called."""
    yield from {id(one): one for one in vars(module).values() if isinstance(one, kind)}.values()


def _registered(
    found: Iterator[tuple[Any, ModuleType]], names: Callable[[Any], Sequence[str]]
) -> dict[str, Any]:
    registered: dict[str, tuple[Any, ModuleType]] = {}
    for one, module in found:
        for name in names(one):
            other, its = registered.setdefault(name, (one, module))
            if other is not one:  # the same object, imported by another module, is no second
                raise TypeError(f"{name!r} is declared twice: in {file_of(its)} and {file_of(module)}")
    return {name: one for name, (one, _) in registered.items()}
