"""Memory that holds code, and the functions of this process and its system.

Code is never freed, because threads may run it until the process ends.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import platform
import sys
from typing import Any

from pellucid.errors import KernelError
from pellucid.errors.messages import reason

WINDOWS = sys.platform == "win32"
_COMMIT, _READ, _READ_WRITE, _READ_EXECUTE = (
    0x3000,
    0x02,
    0x04,
    0x20,
)  # Windows: MEM_COMMIT | MEM_RESERVE, PAGE_...
# void clear(start, end): writes back the data cache and drops the instruction cache (Arm Architecture Reference Manual
# for A-profile, B2.9.5), 16 bytes at a time, the smallest line that there may be.
_CLEAR_CACHE = bytes.fromhex(
    "e20300aa 5f0001eb 82000054 227b0bd5 42400091 fcffff17 9f3b03d5 e20300aa 5f0001eb 82000054 22750bd5 42400091"
    "fcffff17 9f3b03d5 df3f03d5 c0035fd6"
)


@functools.cache
def process() -> Any:
    """Return this process as a library of C functions. On Windows the functions are those of its system libraries."""
    if WINDOWS:
        return _WindowsLibraries()
    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.restype = ctypes.c_void_p
    library.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    library.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return library


class _WindowsLibraries:
    """The functions of Windows' libraries, by name."""

    def __init__(self) -> None:
        names = ("kernel32", "kernelbase", "ntdll", "ucrtbase")
        self.libraries = [ctypes.WinDLL(name, use_last_error=True) for name in names]  # type: ignore[attr-defined, unused-ignore]

    def __getattr__(self, name: str) -> Any:
        for library in self.libraries:
            if (function := getattr(library, name, None)) is not None:
                setattr(self, name, function)
                return function
        raise AttributeError(name)


def symbol(name: str) -> int | None:
    """Return the address of a name that this process or its system defines, or None."""
    for library in process().libraries if WINDOWS else (process(),):
        try:
            return ctypes.addressof(ctypes.c_char.in_dll(library, name))
        except ValueError:
            continue
    return None


def reserve(size: int) -> int:
    """Return the address of ``size`` bytes of new writable memory, in whole pages.

    Raises:
        OSError: the system does not provide the memory.
    """
    if WINDOWS:
        allocate = process().VirtualAlloc
        allocate.restype = ctypes.c_void_p
        allocate.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint32, ctypes.c_uint32]
        address = allocate(None, size, _COMMIT, _READ_WRITE)
        if not address:
            raise _windows_error()
        return int(address)
    access, kind = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    address = process().mmap(None, size, access, kind, -1, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        raise _posix_error()
    return int(address)


def fill(address: int, content: bytes, code_size: int) -> None:
    """Fill memory from ``reserve``. The first ``code_size`` bytes, whole pages, become code, the others constants.

    Raises:
        OSError: the system does not let the code run.
    """
    ctypes.memmove(address, content, len(content))
    _protect(address, code_size, code=True)
    _protect(address + code_size, len(content) - code_size, code=False)
    _make_visible(address, code_size)


def map_code(code: bytes) -> int:
    """Map a small piece of machine code and return its address.

    Raises:
        KernelError: the system does not let code run.
    """
    try:
        address = reserve(mmap.PAGESIZE)
        fill(address, code.ljust(mmap.PAGESIZE, b"\0"), mmap.PAGESIZE)
    except OSError as error:
        raise KernelError(f"the system does not let compiled code run: {reason(error)}") from error
    return address


def _protect(address: int, size: int, *, code: bool) -> None:
    if not size:
        return
    if WINDOWS:
        protect = process().VirtualProtect
        protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint32, ctypes.c_void_p]
        before = ctypes.c_uint32()
        if not protect(address, size, _READ_EXECUTE if code else _READ, ctypes.byref(before)):
            raise _windows_error()
    elif process().mprotect(address, size, mmap.PROT_READ | (mmap.PROT_EXEC if code else 0)):
        raise _posix_error()


def _make_visible(address: int, size: int) -> None:
    """Make new code visible to the instruction caches. The caches of x86-64 see it anyway."""
    if platform.machine().lower() not in ("aarch64", "arm64"):
        return
    if sys.platform == "darwin":
        clear = process().sys_icache_invalidate
        clear.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        clear(address, size)
    elif WINDOWS:
        flush = process().FlushInstructionCache
        flush.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
        flush(ctypes.c_void_p(-1), address, size)
    else:
        _clear_cache()(address, address + size)


@functools.cache
def _clear_cache() -> Any:
    """Return the function that clears the caches of an Arm processor. Linux itself makes new pages visible to it."""
    address = reserve(mmap.PAGESIZE)
    ctypes.memmove(address, _CLEAR_CACHE, len(_CLEAR_CACHE))
    _protect(address, mmap.PAGESIZE, code=True)
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)(address)


def _posix_error() -> OSError:
    return OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _windows_error() -> OSError:
    error: OSError = ctypes.WinError(ctypes.get_last_error())  # type: ignore[attr-defined, unused-ignore]
    return error
