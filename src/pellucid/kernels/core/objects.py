"""The object files of this installation, and the hashes that name them: of everything that compiled code depends on."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import struct
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from msgspec import Struct

from pellucid.errors import KernelError
from pellucid.kernels.core import isa
from pellucid.kernels.core.definitions import PACKAGE, ROOT
from pellucid.kernels.core.isa import target

# Hashes everything that compiled code depends on. The hashes name the files of the object code cache.
#
# ``environment`` covers the dependencies of all kernels that are compiled here: the target, Numba and LLVM. ``sources``
# covers the source files of one kernel: the module that declares it, the modules of this package that it
# imports, and the compiler. A change to a text kernel therefore does not recompile attention.

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


# The object files of this installation: one file for each target, with the most frequent kernels.
#
# ``make kernels`` writes the files (``packaging/build_kernels.py``); wheels contain the files of their system. An
# object is found by its name, which contains the hash of the kernel's sources, so changed sources make it unreachable.
# Its content is used only if it has the hash that the index states.
#
#     magic     16 bytes
#     count     uint32
#     index     count entries, in the order of their names' digests: the digest of the name (16 bytes), the digest of
#               the content (16 bytes), offset and length of a group (uint32 each), offset and length of the object in
#               the group after decompression (uint32 each)
#     groups    LZMA streams of several objects with similar code, which take a third of the bytes of single streams

FOLDER = ROOT / "objects"
SUFFIX = ".kernels"
_MAGIC = b"pellucid objects"
_COUNT = struct.Struct("<I")
_ENTRY = struct.Struct("<16s16sIIII")
_GROUP_BYTES = 200_000  # a group ends when it has this size: decompression takes 2 ms
_MAX_BYTES = 1 << 24  # maximum size of a group
_DIGEST_BYTES = 16


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()[:_DIGEST_BYTES]


class Objects:
    """The object files of one target. A missing or damaged file holds none; ``is_damaged`` tells them apart."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._index: dict[bytes, tuple[bytes, int, int, int, int]] = {}
        self.is_damaged = False
        self._last: tuple[int, bytes] = (0, b"")  # the group that was decompressed last, and its offset
        try:
            with path.open("rb") as file:
                self.is_damaged = file.read(len(_MAGIC)) != _MAGIC
                if not self.is_damaged:
                    (count,) = _COUNT.unpack(file.read(_COUNT.size))
                    entries = _ENTRY.iter_unpack(file.read(count * _ENTRY.size))
                    self._index = {name: place for name, *place in entries}  # type: ignore[misc]
        except (FileNotFoundError, IsADirectoryError, PermissionError):
            return
        except (OSError, struct.error):
            self.is_damaged = True

    def __len__(self) -> int:
        return len(self._index)

    def has(self, name: str) -> bool:
        """True if there is an object with this name."""
        return _digest(name.encode()) in self._index

    def read(self, name: str) -> bytes | None:
        """Return an object file; None if there is no object with this name, or if it is damaged."""
        entry = self._index.get(_digest(name.encode()))
        if entry is None:
            return None
        digest, offset, length, start, size = entry
        if self._last[0] != offset:
            self._last = (offset, self._group(offset, length))
        content = self._last[1][start : start + size]
        return content if _digest(content) == digest else None

    def _group(self, offset: int, length: int) -> bytes:
        """Return the objects of a group, one after the other; nothing if the group is damaged.

        Raises:
            KernelError: this Python has no LZMA.
        """
        try:
            from lzma import LZMADecompressor, LZMAError
        except ImportError as error:
            raise KernelError(
                "this Python was built without the module lzma, which reads the installed kernels: use another "
                "Python, or set PELLUCID_COMPILE=1 after pip install 'pellucid[compile]'"
            ) from error
        try:
            with self._path.open("rb") as file:
                file.seek(offset)
                return LZMADecompressor().decompress(file.read(length), _MAX_BYTES)
        except (OSError, LZMAError, EOFError):
            return b""


def path_of(target_name: str) -> Path:
    """Return the path of a target's file."""
    return FOLDER / f"{target_name}{SUFFIX}"


@functools.cache
def _objects(path: Path) -> Objects:
    return Objects(path)


def installed() -> Objects:
    """Return the object files of this process's target. ``PELLUCID_COMPILE=1`` hides them, to compile all kernels."""
    return _objects(FOLDER if compiles_all() else path_of(target().name))


def write(path: Path, contents: Mapping[str, bytes]) -> None:
    """Write a file that holds objects by name. Neighbours should have similar code. Equal contents make equal files."""
    import lzma

    entries: list[tuple[bytes, bytes, int, int, int, int]] = []
    streams: list[bytes] = []
    offset = len(_MAGIC) + _COUNT.size + len(contents) * _ENTRY.size
    for group in _groups(contents):
        stream, start = lzma.compress(b"".join(contents[name] for name in group), preset=9), 0
        for name in group:
            size = len(contents[name])
            digests = _digest(name.encode()), _digest(contents[name])
            entries.append((*digests, offset, len(stream), start, size))
            start += size
        streams.append(stream)
        offset += len(stream)
    index = [_ENTRY.pack(*entry) for entry in sorted(entries)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join((_MAGIC, _COUNT.pack(len(entries)), *index, *streams)))


def _groups(contents: Mapping[str, bytes]) -> Iterator[list[str]]:
    """Yield groups of neighbours whose names begin with the name of the same kernel."""
    group: list[str] = []
    for name in contents:
        alike = not group or name.partition("-")[0] == group[0].partition("-")[0]
        if not alike or sum(len(contents[one]) for one in group) > _GROUP_BYTES:
            yield group
            group = []
        group.append(name)
    if group:
        yield group
