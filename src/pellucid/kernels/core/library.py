"""Loads kernels: from the cache on disk, from the object files of this installation, or from the compiler.

An installation may hold the object files of the most frequent kernels for its system (``objects.py``). Another kernel
is compiled once for a machine, by Numba. Object files that were used or compiled are stored in a cache folder. Their
names contain hashes of everything that the code depends on (``objects.py``), so an object is never stale. Later
processes link the object (``linker.py``) and do not import Numba, which is not needed to run.

The folder holds only object code, no pickles. A file is loaded only if no other user can have written it, if its
content was written under its name (``util/trusted_files.py``), and if it can be linked (``linker.py``). Otherwise the
kernel is compiled again.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from pellucid.errors import KernelError, reason
from pellucid.kernels.core import linker
from pellucid.kernels.core.definitions import KernelKey, definition
from pellucid.kernels.core.isa import target
from pellucid.kernels.core.linker import BadObject
from pellucid.kernels.core.objects import environment, installed, sources
from pellucid.util.paths import home
from pellucid.util.trusted_files import TrustedFolder

# Delays Ctrl-C while the compiler runs. LLVM calls back into Python, where an exception is lost or does damage.


@contextlib.contextmanager
def delayed() -> Iterator[None]:
    """Delay interrupts until the end of the block."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    received: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: received.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if received:
            handler(*received[0])


ENTRY = "kernel"
"""The name of a kernel's function in its object file (``compiler.py``)."""


class CompileProgress(Protocol):
    """Progress callback: number of compiled kernels, number of all kernels to compile, name of the next kernel."""

    def __call__(self, done: int, total: int, label: str) -> None: ...


def cache_folder() -> Path:
    """Return the cache folder of compiled kernels, or its intended path if there is no folder that can be trusted."""
    return _folder().path or home() / _folder_name()


def _folder_name() -> str:
    return f"kernels/{environment()}"


def _folder() -> TrustedFolder:
    return TrustedFolder(_folder_name())


def file_name(key: KernelKey) -> str:
    """Return the name of a kernel's object file. It depends on the kernel's sources."""
    return f"{key.file_stem}-{sources(definition(key.name).module)}.o"


@functools.lru_cache(maxsize=1)
def _folder_at_first_use(_: Path) -> TrustedFolder:
    """Return the cache folder as of its first use. The argument, the home folder, is only the key of ``lru_cache``."""
    return _folder()


def can_cache() -> bool:
    """True if kernels that are compiled now are cached for later processes."""
    return _folder_at_first_use(home()).keeps


class Library:
    """The kernels that this process has loaded. Use the instance that ``shared()`` returns."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._addresses: dict[KernelKey, int] = {}
        self._functions: dict[KernelKey, Callable[[int, int, int, int], int]] = {}

    def load(self, keys: Iterable[KernelKey], progress: CompileProgress | None = None) -> dict[KernelKey, int]:
        """Load kernels and return their addresses. Kernels that are not cached are compiled.

        Raises:
            KernelError: a kernel did not compile.
        """
        unique = list(dict.fromkeys(keys))
        with self._lock:
            if missing := [key for key in unique if key not in self._addresses]:
                self._load(_folder(), missing, progress)
            return {key: self._addresses[key] for key in unique}

    def _load(self, folder: TrustedFolder, keys: list[KernelKey], progress: CompileProgress | None) -> None:
        with delayed():
            # Neighbours in the order of names are often in the same group (objects.py).
            addresses = {key: self._load_cached(folder, key) for key in sorted(keys, key=str)}
        missing = [key for key in keys if not addresses[key]]
        self._addresses |= {key: address for key, address in addresses.items() if address}
        for done, key in enumerate(missing):
            if progress:
                progress(done, len(missing), str(key))
            with delayed():
                code = compile_kernel(key)
                self._addresses[key] = _link_compiled(code, key)
                folder.write(file_name(key), code)
        if missing and progress:
            progress(len(missing), len(missing), "")

    def _load_cached(self, folder: TrustedFolder, key: KernelKey) -> int | None:
        """Load a kernel without compiling it and return its address; None if it is absent or does not load."""
        name = file_name(key)
        for source in (folder, installed()):
            code = source.read(name)
            if code is None:
                continue
            try:
                address = linker.link(code, ENTRY)
            except BadObject:
                continue
            except OSError as error:
                raise KernelError(f"{key}: the system does not let its code run: {reason(error)}") from error
            if source is not folder:  # the next process need not decompress it
                folder.write(name, code)
            return address
        return None

    def is_cached(self, keys: Iterable[KernelKey]) -> bool:
        """True if all these kernels are loaded or cached, so that no kernel has to be compiled."""
        folder = _folder_at_first_use(home())  # this method is called often
        return all(
            key in self._addresses or installed().has(name := file_name(key)) or folder.has(name) for key in keys
        )

    def compile_one(self, key: KernelKey) -> None:
        """Compile and load a kernel. Other threads can load and compile kernels meanwhile.

        Raises:
            KernelError: the kernel did not compile.
        """
        code = compile_kernel(key)
        with self._lock:
            if key not in self._addresses:
                self._addresses[key] = _link_compiled(code, key)

    def function(self, key: KernelKey) -> Callable[[int, int, int, int], int]:
        """Return a kernel as a Python function of four integers. The GIL is released while it runs."""
        if (function := self._functions.get(key)) is not None:
            return function
        address = self.load([key])[key]
        kind = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 4)
        native = kind(address)
        result = (ctypes.c_int64 * 4)()
        where = ctypes.addressof(result)

        def call(first: int, second: int, third: int, fourth: int) -> int:
            nonlocal result  # keeps it alive
            return int(native(where, where, first, second, third, fourth))

        return self._functions.setdefault(key, call)


@functools.cache
def shared() -> Library:
    """Return the process's library. There is only one library, because compiled code cannot be unloaded."""
    return Library()


def _link_compiled(code: bytes, key: KernelKey) -> int:
    """Link an object file that this process has compiled. Raises KernelError."""
    try:
        return linker.link(code, ENTRY)
    except (BadObject, OSError) as error:
        raise KernelError(f"{key}: the compiled object cannot be linked: {error}") from error


def compile_kernel(key: KernelKey) -> bytes:
    """Compile one kernel. Returns the object file, whose function is ENTRY.

    Raises:
        KernelError: the kernel did not compile, or there is no compiler.
    """
    return bytes(compiled(key).emit_native_object())


def assembly(key: KernelKey) -> str:
    """Return the assembly of one kernel, for reading and for tests that look for an instruction.

    Raises:
        KernelError: the kernel did not compile, or there is no compiler.
    """
    return str(compiled(key).get_asm_str())


def can_compile() -> bool:
    """True if Numba is installed."""
    return importlib.util.find_spec("numba") is not None


def compiled(key: KernelKey) -> Any:
    """Compile one kernel. Returns the library that ``compiler.compiled`` makes.

    Raises:
        KernelError: the kernel did not compile, or there is no compiler.
    """
    if not can_compile():
        if installed().is_damaged or installed().has(file_name(key)):
            raise KernelError(
                f"the installed kernels for {target().name} are damaged ({key}): pip install --force-reinstall "
                "--no-deps pellucid installs them again"
            )
        raise KernelError(
            f"no compiled kernel of {key} for {target().name} is installed: pip install 'pellucid[compile]' adds "
            "the compiler"
        )
    from numba.core.errors import NumbaError

    body, compiler = build(key), importlib.import_module("pellucid.kernels.core.compiler")
    arguments = importlib.import_module("pellucid.kernels.simd.emitter").KERNEL_SIGNATURE.args
    try:
        return compiler.compiled(body, arguments)
    except (NumbaError, AttributeError) as error:
        raise KernelError(f"{key} did not compile: {error}") from error


def build(key: KernelKey) -> Any:
    """Build the kernel's body as a Numba dispatcher, to compile it or to call it from a test."""
    simd = importlib.import_module("pellucid.kernels.simd")
    return definition(key.name).build(simd, **dict(key.parameters))
