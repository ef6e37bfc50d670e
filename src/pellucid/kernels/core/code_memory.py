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

from pellucid.errors import KernelError, reason

_WINDOWS_LIBRARIES = ("kernel32", "kernelbase", "ntdll", "ucrtbase")
_COMMIT, _READ, _READ_WRITE, _READ_EXECUTE = (0x3000, 0x02, 0x04, 0x20)  # Windows: MEM_COMMIT | MEM_RESERVE, PAGE_...
# void clear(start, end): writes back the data cache and drops the instruction cache (Arm Architecture Reference Manual
# for A-profile, B2.9.5), 16 bytes at a time, the smallest line that there may be.
_CLEAR_CACHE = bytes.fromhex(
    "e20300aa 5f0001eb 82000054 227b0bd5 42400091 fcffff17 9f3b03d5 e20300aa 5f0001eb 82000054 22750bd5 42400091"
    "fcffff17 9f3b03d5 df3f03d5 c0035fd6"
)


@functools.cache
def libraries() -> tuple[Any, ...]:
    """Return the libraries whose functions this process can call: all loaded libraries, or on Windows the system's."""
    if sys.platform == "win32":
        from pellucid.util import windows

        return tuple(windows.library(name) for name in _WINDOWS_LIBRARIES)
    return (ctypes.CDLL(None, use_errno=True),)


def symbol(name: str) -> int | None:
    """Return the address of a name that ``libraries`` define, or None."""
    for library in libraries():
        try:
            return ctypes.addressof(ctypes.c_char.in_dll(library, name))
        except ValueError:
            continue
    return None


def function(name: str, result: Any, *arguments: Any) -> Any:
    """Return a C function of ``libraries`` with these types.

    Raises:
        KernelError: no library defines the function.
    """
    for library in libraries():
        if (found := getattr(library, name, None)) is not None:
            found.restype, found.argtypes = result, list(arguments)
            return found
    raise KernelError(f"the system has no function {name}")


if sys.platform == "win32":
    from pellucid.util import windows

    def reserve(size: int) -> int:
        """Return the address of ``size`` bytes of new writable memory, in whole pages.

        Raises:
            OSError: the system does not provide the memory.
        """
        types = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint32, ctypes.c_uint32
        address = function("VirtualAlloc", ctypes.c_void_p, *types)(None, size, _COMMIT, _READ_WRITE)
        if not address:
            raise windows.error()
        return int(address)

    def _protect(address: int, size: int, *, code: bool) -> None:
        before, access = ctypes.c_uint32(), _READ_EXECUTE if code else _READ
        types = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint32, ctypes.c_void_p
        if size and not function("VirtualProtect", ctypes.c_int, *types)(address, size, access, ctypes.byref(before)):
            raise windows.error()

else:

    def reserve(size: int) -> int:
        """Return the address of ``size`` bytes of new writable memory, in whole pages.

        Raises:
            OSError: the system does not provide the memory.
        """
        types = ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long
        access, kind = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        address = function("mmap", ctypes.c_void_p, *types)(None, size, access, kind, -1, 0)
        if address in (None, ctypes.c_void_p(-1).value):
            raise _error()
        return int(address)

    def _protect(address: int, size: int, *, code: bool) -> None:
        types = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
        access = mmap.PROT_READ | (mmap.PROT_EXEC if code else 0)
        if size and function("mprotect", ctypes.c_int, *types)(address, size, access):
            raise _error()


def _error() -> OSError:
    return OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


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


def _make_visible(address: int, size: int) -> None:
    """Make new code visible to the instruction caches. The caches of x86-64 see it anyway."""
    if platform.machine().lower() not in ("aarch64", "arm64"):
        return
    if sys.platform == "darwin":
        function("sys_icache_invalidate", None, ctypes.c_void_p, ctypes.c_size_t)(address, size)
    elif sys.platform == "win32":
        types = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t
        function("FlushInstructionCache", ctypes.c_int, *types)(ctypes.c_void_p(-1), address, size)
    else:
        _clear_cache()(address, address + size)


@functools.cache
def _clear_cache() -> Any:
    """Return the function that clears the caches of an Arm processor. Linux itself makes new pages visible to it."""
    address = reserve(mmap.PAGESIZE)
    ctypes.memmove(address, _CLEAR_CACHE, len(_CLEAR_CACHE))
    _protect(address, mmap.PAGESIZE, code=True)
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)(address)
