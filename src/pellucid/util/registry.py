"""Discovery of the objects that a package's modules declare, by unique name. No list of modules is needed.

A module declares an object of the package's type at its top level (``OLLAMA = Api("ollama", ...)``), or a subclass of
the package's base class. ``docs/architecture.md`` lists these packages. Kernels have their own index of the sources
(``kernels/core/definitions.py``), so that only the used kernels are imported.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

T = TypeVar("T")


def modules(package: str) -> list[ModuleType]:
    """Import and return the modules of a package and its subpackages, sorted by name."""
    parent = importlib.import_module(package)
    imported: list[ModuleType] = []
    for info in sorted(pkgutil.iter_modules(parent.__path__), key=lambda info: info.name):
        name = f"{package}.{info.name}"
        imported += modules(name) if info.ispkg else [importlib.import_module(name)]
    return imported


def discover(package: str, kind: type[T], names: Callable[[T], Sequence[str]]) -> dict[str, T]:
    """Module-level objects of a type in a package, by each of their names, in order of the modules.

    Raises TypeError: two objects share a name. The message names both files.
    """
    return _by_name(modules(package), lambda module: _objects(module, kind), names)


def find(package: str, kind: type[T], names: Callable[[T], Sequence[str]], name: str) -> T | None:
    """The object that ``discover`` returns under ``name``, or None.

    First imports only the modules whose source mentions the name. Imports all modules if none of these modules declares
    the name. For model families, reading all sources takes 2 ms, and importing all modules takes 7 ms. Raises
    TypeError: two objects have this name. The message names both files.
    """
    mentioning: list[ModuleType] = []
    for folder in map(Path, importlib.import_module(package).__path__):
        for file in sorted(folder.rglob("*.py")):
            text = file.read_text("utf-8")
            if file.name != "__init__.py" and (f'"{name}"' in text or f"'{name}'" in text):
                parts = file.relative_to(folder).with_suffix("").parts
                mentioning.append(importlib.import_module(".".join((package, *parts))))
    by_name = _by_name(mentioning, lambda module: _objects(module, kind), names)
    return by_name[name] if name in by_name else discover(package, kind, names).get(name)


def discover_classes(package: str, base: type[T], names: Callable[[type[T]], Sequence[str]]) -> dict[str, type[T]]:
    """Subclasses of ``base`` that a package's modules define, by each of their names, in order of the modules.

    Raises TypeError: two classes share a name. The message names both files.
    """

    def defined(module: ModuleType) -> Iterator[type[T]]:
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, base) and value.__module__ == module.__name__:
                yield value

    return _by_name(modules(package), defined, names)


def file_of(declared: Any) -> str:
    """Source file of a module, class or function, for a message. The path begins at the package."""
    import inspect  # slow to import, and only errors need it

    path = Path(inspect.getsourcefile(declared) or "?")
    package = __name__.partition(".")[0]
    parts = path.parts
    return "/".join(parts[parts.index(package) :]) if package in parts else str(path)


def _objects(module: ModuleType, kind: type[T]) -> Iterable[T]:
    """Module-level objects of a type. An object with several variables is returned once."""
    return {id(value): value for value in vars(module).values() if isinstance(value, kind)}.values()


def _by_name(
    modules: Sequence[ModuleType], declared: Callable[[ModuleType], Iterable[T]], names: Callable[[T], Sequence[str]]
) -> dict[str, T]:
    """The declarations of modules, by each of their names. Raises TypeError if two declarations share a name."""
    registered: dict[str, tuple[T, ModuleType]] = {}
    for module in modules:
        for value in declared(module):
            for name in names(value):
                first, its_module = registered.setdefault(name, (value, module))
                if first is not value:  # an object that another module imports is not a duplicate
                    raise TypeError(f"{name!r} is declared twice: in {file_of(its_module)} and {file_of(module)}")
    return {name: value for name, (value, _) in registered.items()}
