"""Finds, compiles, keeps and loads compiled kernels.

A kernel is compiled once for a machine: Numba turns the Python function into an object file, which is kept in
a folder. The folder's name and the file's are hashes of everything that the code depends on (``fingerprint.py``). A
later process loads the object with LLVM alone, in about a millisecond, and never imports Numba. No object is ever
stale: another source is another file.

Only object code goes through the folder, never a pickle. A file is loaded if nobody but this user can have written it
and it is what was written under its name (``pellucid/util/private.py``), and if LLVM, which ends the process when it is
given a damaged object, can link it (``elf.py``). Any other file is compiled anew.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

from pellucid.errors import KernelError
from pellucid.kernels.core import elf, interrupts
from pellucid.kernels.core.definitions import KernelKey, definition
from pellucid.kernels.core.fingerprint import environment, sources
from pellucid.util.paths import home
from pellucid.util.private import Folder


class CompileProgress(Protocol):
    """Told while kernels are compiled: how many are done, of how many, and which is next."""

    def __call__(self, done: int, total: int, label: str) -> None: ...


def cache_folder() -> Path:
    """Where compiled kernels are kept; where they would be, if there is no folder that can be trusted."""
    return _folder().path or home() / _folder_name()


def _folder_name() -> str:
    return f"kernels/{environment()}"


def _folder() -> Folder:
    return Folder(_folder_name())


def file_name(key: KernelKey) -> str:
    """The file of a kernel's object code in the folder: another one for other sources."""
    return f"{key.file_stem}-{sources(definition(key.name).module)}.o"


@functools.lru_cache(maxsize=1)
def _looked_at(_: Path) -> Folder:
    """The folder as it was when it was looked at first, for as long as the home is the same: to see what is there."""
    return _folder()


def are_kept() -> bool:
    """Whether what is compiled now is there for the next process."""
    return _looked_at(home()).keeps


class Library:
    """The kernels that this process has loaded. Use the one that ``shared()`` returns."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._addresses: dict[KernelKey, int] = {}
        self._engines: list[Any] = []

    def load(
        self, keys: Iterable[KernelKey], progress: CompileProgress | None = None
    ) -> dict[KernelKey, int]:
        """The addresses of kernels, compiling those that this machine has not compiled yet.

        Raises:
            KernelError: a kernel did not compile.
        """
        wanted = list(dict.fromkeys(keys))
        with self._lock:
            if missing := [key for key in wanted if key not in self._addresses]:
                self._load(_folder(), missing, progress)
            return {key: self._addresses[key] for key in wanted}

    def _load(self, folder: Folder, keys: list[KernelKey], progress: CompileProgress | None) -> None:
        with interrupts.held_back():
            found = {key: self._found(folder, key) for key in keys}
        absent = [key for key, address in found.items() if not address]
        self._addresses |= {key: address for key, address in found.items() if address}
        for done, key in enumerate(absent):
            if progress:
                progress(done, len(absent), str(key))
            with interrupts.held_back():
                made = compile_kernel(key)  # by this process: it needs no check
                self._addresses[key] = self._link(made, key)
                with contextlib.suppress(elf.BadObject):  # the next process would refuse it
                    _check(made)
                    folder.write(file_name(key), made)
        if absent and progress:
            progress(len(absent), len(absent), "")

    def _found(self, folder: Folder, key: KernelKey) -> int | None:
        """The address of a kernel that is kept; None if it is not, or does not load."""
        content = folder.read(file_name(key))
        if content is None:
            return None
        try:
            return self._link(content, key, checked=True)
        except (KernelError, elf.BadObject, RuntimeError):  # RuntimeError: LLVM refuses it
            return None

    def kept(self, keys: Iterable[KernelKey]) -> bool:
        """Whether kernels are there without compiling anything."""
        folder = _looked_at(home())  # this is asked again and again
        return all(key in self._addresses or folder.has(file_name(key)) for key in keys)

    def function(self, key: KernelKey, arguments: int) -> Callable[..., int]:
        """A kernel as a Python function of integers. The GIL is released while it runs."""
        address = self.load([key])[key]
        kind = ctypes.CFUNCTYPE(
            ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * arguments
        )
        native = kind(address)
        result = (ctypes.c_int64 * 4)()
        where = ctypes.addressof(result)

        def call(*values: int) -> int:
            nonlocal result  # keeps it alive
            return int(native(where, where, *values))

        return call

    def _link(self, content: bytes, key: KernelKey, *, checked: bool = False) -> int:
        from llvmlite import binding

        # An engine each: Numba's names for helpers are unique in a process, not among object files, and one
        # engine would take another kernel's helper of the same name.
        engine = _execution_engine()
        if checked:
            _check(content)
        symbol, _, code = content.partition(b"\0")
        engine.add_object_file(binding.ObjectFileRef.from_data(code))
        engine.finalize_object()
        address: int = engine.get_function_address(symbol.decode())
        if not address:
            raise KernelError(f"{key}: the compiled object lacks its function")
        self._engines.append(engine)
        return address


@functools.cache
def shared() -> Library:
    """The process's library. Compiled code cannot be unloaded, so there is one."""
    return Library()


def _check(content: bytes) -> None:
    """Raise `elf.BadObject` if LLVM cannot link what `compile_kernel` gave. There must be an execution engine."""
    from llvmlite import binding

    symbol, _, code = content.partition(b"\0")
    try:
        name = symbol.decode()
    except UnicodeDecodeError as error:
        raise elf.BadObject("the name of the function is not UTF-8") from error
    if sys.platform == "linux":  # elsewhere objects are of other kinds
        elf.check(code, name, lambda name: binding.address_of_symbol(name) is not None)


def _execution_engine() -> Any:
    from llvmlite import binding

    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    target = binding.Target.from_triple(binding.get_process_triple())
    module = binding.parse_assembly("")
    module.triple = binding.get_process_triple()
    return binding.create_mcjit_compiler(module, target.create_target_machine(jit=True))


def compile_kernel(key: KernelKey) -> bytes:
    """Compile one kernel: its symbol, a NUL and the object file.

    Raises:
        KernelError: it did not compile.
    """
    symbol, library = compiled(key)
    return symbol.encode() + b"\0" + bytes(library.emit_native_object())


def assembly(key: KernelKey) -> str:
    """What one kernel is compiled to, as text: for a person, and for tests that look for an instruction.

    Raises:
        KernelError: it did not compile.
    """
    _, library = compiled(key)
    return str(library.get_asm_str())


def compiled(key: KernelKey) -> tuple[str, Any]:
    """A kernel's symbol, and what ``compiler.compiled`` gives for it."""
    from numba.core.errors import NumbaError

    body, compiler = build(key), importlib.import_module("pellucid.kernels.core.compiler")
    arguments = importlib.import_module("pellucid.kernels.simd.types").KERNEL_SIGNATURE.args
    try:
        symbol, library = compiler.compiled(body, arguments)
    except (NumbaError, AttributeError) as error:
        raise KernelError(f"{key} did not compile: {error}") from error
    return symbol, library


def build(key: KernelKey) -> Any:
    """The kernel's body as a Numba dispatcher, for compiling it or for calling it from a test."""
    simd = importlib.import_module("pellucid.kernels.simd")
    return definition(key.name).build(simd, **dict(key.parameters))
