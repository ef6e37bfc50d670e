"""Hashes everything that compiled code depends on. The hashes name the files of the object code cache.

``environment`` covers the dependencies of all kernels that are compiled here: the target, Numba and LLVM. ``sources``
covers the source files of one kernel: the module that declares it, the modules of this package that it
imports, and the compiler. A change to a text kernel therefore does not recompile attention.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from msgspec import Struct

from pellucid.kernels.core import isa
from pellucid.kernels.core.definitions import PACKAGE, ROOT

COMPILER = (f"{PACKAGE}.core.compiler", f"{PACKAGE}.simd")
"""Modules that every kernel is compiled with, even if its own module does not import them."""
HOST = f"{PACKAGE}.core.host"
"""``sources`` ignores this module and its imports, because the code depends only on the target that it leads to."""
_IMPORT = re.compile(
    rf"[ \t]*(?:from[ \t]+({re.escape(PACKAGE)}[\w.]*)[ \t]+import[ \t]+(\([^)]*\)|[^\n]*)"
    rf"|import[ \t]+({re.escape(PACKAGE)}[\w.]*))"
)
"""An import statement at the start of a line."""


def environment() -> str:
    """Return the hash of everything that kernels compiled here depend on, except their sources."""
    settings = sorted((name, value) for name, value in os.environ.items() if name.startswith("NUMBA_"))
    return _environment(isa.target(), compiles_all(), tuple(settings))


def compiles_all() -> bool:
    """True if ``PELLUCID_COMPILE`` is set and not 0: kernels of the installation are not used, nor their cache."""
    return os.environ.get("PELLUCID_COMPILE", "0") != "0"


@functools.cache
def _environment(target: isa.Target, compiles: bool, settings: tuple[tuple[str, str], ...]) -> str:
    versions = package_version("numba"), package_version("llvmlite")
    facts: tuple[Any, ...] = (target.name, *versions, compiles, settings)
    if target.triple == isa.HOST_TRIPLE:
        from llvmlite import binding

        facts += (binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten())
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:20]


def package_version(package: str) -> str:
    """Return a text that identifies the installed version of a package; "" if it is not installed.

    The text is the contents of ``_version.py``, which Numba and llvmlite have. ``importlib.metadata`` returns the
    version too, but importing it takes longer than the rest of this module.
    """
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        return ""
    try:
        return Path(spec.origin).with_name("_version.py").read_text()
    except OSError:
        from importlib.metadata import version

        return version(package)


@functools.cache
def sources(module: str) -> str:
    """Return the hash of the source files that the kernels of a module depend on."""
    digest = hashlib.sha256()
    for name in sorted(_closure((module, *COMPILER))):
        digest.update(name.encode() + _source(name).digest)
    return digest.hexdigest()[:12]


def source_bytes(module: str) -> int:
    """Return the bytes of the source files that a module's kernels depend on, without the files of ``COMPILER``."""
    return sum(_source(name).size for name in _closure((module,)) - _closure(COMPILER))


def _closure(modules: tuple[str, ...]) -> set[str]:
    """Return the given modules and all modules of this package that they import, directly or indirectly."""
    closure: set[str] = set()
    pending = list(modules)
    while pending:
        module = pending.pop()
        if module not in closure and module != HOST:
            closure.add(module)
            pending += _source(module).imports
    return closure


class _Source(Struct, frozen=True):
    """A module's source file: its hash, the modules of this package that it imports, its size in bytes."""

    digest: bytes
    imports: tuple[str, ...]
    size: int = 0


@functools.cache
def _source(module: str) -> _Source:
    path = _path(module)
    file = path / "__init__.py" if _is_package(module) else path.with_suffix(".py")
    try:
        content = file.read_bytes()
    except FileNotFoundError:  # the imported name is not a module
        return _Source(b"", ())
    return _Source(hashlib.sha256(content).digest(), tuple(_imports(content.decode())), len(content))


def _path(module: str) -> Path:
    """Return the path of a module, without a suffix."""
    return ROOT.joinpath(*module.removeprefix(PACKAGE).strip(".").split("."))


@functools.cache
def _is_package(module: str) -> bool:
    return _path(module).is_dir()


def _imports(text: str) -> Iterator[str]:
    """Yield the modules that a source imports, at its top or inside a function."""
    at = text.find(PACKAGE)  # faster than a search with the regular expression
    while at >= 0:
        match = _IMPORT.match(text, text.rfind("\n", 0, at) + 1)
        at = text.find(PACKAGE, match.end() if match else at + 1)
        if not match:
            continue
        package = match[1] or match[3]
        yield package
        if match[2] and _is_package(package):
            names = re.findall(r"\w+", re.sub(r"#.*|\bas[ \t]+\w+", "", match[2]))
            yield from (f"{package}.{name}" for name in names)
