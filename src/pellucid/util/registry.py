"""Discovery of the objects that a package's modules declare, by unique name. No list of modules is needed."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

T = TypeVar("T")


def modules(package: str) -> list[ModuleType]:
    """Import and return the modules of a package and its subpackages."""
    root = importlib.import_module(package)
    found: list[ModuleType] = []
    for one in sorted(pkgutil.iter_modules(root.__path__), key=lambda one: one.name):
        name = f"{package}.{one.name}"
        if one.ispkg:
            found += modules(name)
        else:
            found.append(importlib.import_module(name))
    return found


def discover(package: str, kind: type[T], names: Callable[[T], Sequence[str]]) -> dict[str, T]:
    """Module-level objects of a type in a package, by each of their names, in order of the modules.

    Raises:
        TypeError: two objects share a name. The message names both files.
    """
    return _registered(
        ((one, module) for module in modules(package) for one in _declared(module, kind)), names
    )


def find(package: str, kind: type[T], names: Callable[[T], Sequence[str]], wanted: str) -> T | None:
    """The object that ``discover`` finds under the name ``wanted``, or None.

    First imports only the modules whose source mentions the name, and all modules if these do not declare it. Importing
    all families takes 7 ms, reading their source 2 ms.

    Raises:
        TypeError: two objects have this name. The message names both files.
    """
    mentioned: list[ModuleType] = []
    for folder in map(Path, importlib.import_module(package).__path__):
        for file in sorted(folder.rglob("*.py")):
            if file.name == "__init__.py":
                continue
            text = file.read_text("utf-8")
            if f'"{wanted}"' in text or f"'{wanted}'" in text:
                parts = file.relative_to(folder).with_suffix("").parts
                mentioned.append(importlib.import_module(".".join((package, *parts))))
    found = _registered(((one, module) for module in mentioned for one in _declared(module, kind)), names)
    return found[wanted] if wanted in found else discover(package, kind, names).get(wanted)


def discover_classes(
    package: str, base: type[T], names: Callable[[type[T]], Sequence[str]]
) -> dict[str, type[T]]:
    """Subclasses of ``base`` that a package's modules define, by each of their names, in order of the modules.

    Raises:
        TypeError: two classes share a name. The message names both files.
    """
    found = (
        (one, module)
        for module in modules(package)
        for one in vars(module).values()
        if isinstance(one, type) and issubclass(one, base) and one.__module__ == module.__name__
    )
    return _registered(found, names)


def file_of(declared: Any) -> str:
    """Source file of a module, class or function, for a message. The path begins at the package."""
    import inspect  # slow to import, and only errors need it

    path = Path(inspect.getsourcefile(declared) or "?")
    package = __name__.partition(".")[0]
    parts = path.parts
    return "/".join(parts[parts.index(package) :]) if package in parts else str(path)


def _declared(module: ModuleType, kind: type[T]) -> Iterator[T]:
    """Module-level objects of a type. An object with several variables is returned once."""
    yield from {id(one): one for one in vars(module).values() if isinstance(one, kind)}.values()


def _registered(
    found: Iterator[tuple[Any, ModuleType]], names: Callable[[Any], Sequence[str]]
) -> dict[str, Any]:
    registered: dict[str, tuple[Any, ModuleType]] = {}
    for one, module in found:
        for name in names(one):
            other, its = registered.setdefault(name, (one, module))
            if other is not one:  # an object that another module imports is not a duplicate
                raise TypeError(f"{name!r} is declared twice: in {file_of(its)} and {file_of(module)}")
    return {name: one for name, (one, _) in registered.items()}
