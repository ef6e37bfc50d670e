"""Hashes everything that compiled code depends on. The hashes name the files of the object code cache.

``environment`` covers what all kernels share: Python, Numba, LLVM, the CPU and its features, the instruction set.
``sources`` covers the source files of one kernel: the module that declares it, the modules of this package that it
imports, and the compiler. A change to a text kernel therefore does not recompile attention.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from pellucid.kernels.core import isa

PACKAGE = "pellucid.kernels"
ROOT = Path(__file__).parents[1]
COMPILER = (f"{PACKAGE}.core.compiler", f"{PACKAGE}.simd")
"""The modules that every kernel is compiled with, whether or not its own module imports them."""
_IMPORT = re.compile(
    rf"^[ \t]*(?:from[ \t]+({re.escape(PACKAGE)}[\w.]*)[ \t]+import[ \t]+(\([^)]*\)|[^\n]*)"
    rf"|import[ \t]+({re.escape(PACKAGE)}[\w.]*))",
    re.MULTILINE,
)


@functools.cache
def environment() -> str:
    """The hash of what all kernels depend on, except their sources."""
    target = isa.target()
    facts = (
        sys.version, sys.platform, version("numba"), version("llvmlite"),
        target.isa.name, target.triple, target.cpu, target.feature_text,
        sorted((name, value) for name, value in os.environ.items() if name.startswith("NUMBA_")),
    )  # fmt: skip
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:20]


@functools.cache
def sources(module: str) -> str:
    """The hash of the source files that the kernels of a module depend on."""
    digest = hashlib.sha256()
    for name in sorted(_closure((module, *COMPILER))):
        digest.update(name.encode() + b"\0" + _text(name).encode() + b"\0")
    return digest.hexdigest()[:12]


def _closure(modules: tuple[str, ...]) -> set[str]:
    """The given modules and all modules of this package that they import, directly or indirectly."""
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            waiting += _imports(module)
    return found


def _imports(module: str) -> Iterator[str]:
    """The modules of this package that a module's source names, at its top or inside a function."""
    for match in _IMPORT.finditer(_text(module)):
        package = match[1] or match[3]
        yield package
        names = re.findall(r"\w+", re.sub(r"#.*|\bas[ \t]+\w+", "", match[2] or ""))
        yield from (full for name in names if _file(full := f"{package}.{name}") is not None)


def _file(module: str) -> Path | None:
    path = ROOT.joinpath(*module.removeprefix(PACKAGE).strip(".").split("."))
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)


@functools.cache
def _text(module: str) -> str:
    path = _file(module)
    return "" if path is None else path.read_text(encoding="utf-8")
