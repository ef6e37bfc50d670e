"""Links object files into this process: places their sections in memory and fills in addresses.

In: the bytes of an object file and the name of its function. Out: the function's address. Linked code stays until the
process ends.

On Linux with x86-64 ``link`` does this without LLVM, so a process whose kernels are all cached does not load LLVM. LLVM
takes 40 ms to load, and 1 ms more for each kernel. On other systems, and for kernels that this process has just
compiled, LLVM links.

Source: System V ABI, AMD64 supplement, section 4.4 (https://gitlab.com/x86-psABIs/x86-64-ABI).
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import struct
import sys
from typing import Any

from pellucid.kernels.core.elf import BadObject, ObjectFile, Relocation

WITHOUT_LLVM = sys.platform == "linux" and os.uname().machine == "x86_64"
_ADDRESS = 1  # R_X86_64_64, in 8 bytes
_DISTANCES = {2: struct.Struct("<i"), 4: struct.Struct("<i"), 24: struct.Struct("<q")}  # _PC32, _PLT32, _PC64
_engines: list[Any] = []  # LLVM's engines, which hold the code that they have linked


def link(code: bytes, function: str) -> int:
    """Link an object file that may be damaged. Returns the address of its function.

    Raises:
        BadObject: the file is damaged, or needs a symbol that this process does not have.
        OSError: the system does not provide memory for code.
    """
    if not WITHOUT_LLVM:
        check(code, function)
        return link_with_llvm(code, function)
    image = _Image(code, function)
    base = _mapped(image.size)
    try:
        ctypes.memmove(base, image.at(base), image.size)
        _protect(base, image.code_size, mmap.PROT_READ | mmap.PROT_EXEC)
        _protect(base + image.code_size, image.size - image.code_size, mmap.PROT_READ)
    except BaseException:
        _process().munmap(base, image.size)
        raise
    return base + image.entry


def check(code: bytes, function: str) -> None:
    """Raise `BadObject` unless ``link`` can link an object file at any address that the system may choose."""
    if WITHOUT_LLVM:
        image = _Image(code, function)
        image.at(_process_symbol("mmap") or 0)  # the system maps new memory near the libraries
    elif sys.platform == "linux":  # other systems have other object formats
        _read(code, function)


def link_with_llvm(code: bytes, function: str) -> int:
    """Link an object file that this process has made or ``check`` accepts. LLVM aborts the process on other files.

    Raises:
        BadObject: LLVM refuses the file, or the file does not define the function.
    """
    from llvmlite import binding

    # Each kernel has its own engine. Numba's names of helpers are unique in a process, but not across object files. In
    # a shared engine a kernel could be linked to another kernel's helper of the same name.
    engine = execution_engine()
    try:
        engine.add_object_file(binding.ObjectFileRef.from_data(code))
        engine.finalize_object()
    except RuntimeError as error:
        raise BadObject(str(error)) from error
    address: int = engine.get_function_address(function)
    if not address:
        raise BadObject(f"no function {function}")
    _engines.append(engine)
    return address


def execution_engine() -> Any:
    """Create an LLVM engine, which links object files."""
    from llvmlite import binding

    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    target = binding.Target.from_triple(binding.get_process_triple())
    module = binding.parse_assembly("")
    module.triple = binding.get_process_triple()
    return binding.create_mcjit_compiler(module, target.create_target_machine(jit=True))


def _read(code: bytes, function: str) -> ObjectFile:
    return ObjectFile(code, function, lambda name: _process_symbol(name) is not None)


class _Image:
    """The loaded part of an object file: its code and, from the next page on, its constants.

    Raises:
        BadObject: the file is damaged, or has variables.
    """

    def __init__(self, code: bytes, function: str) -> None:
        self._object = _read(code, function)
        self._places: dict[int, int] = {}
        self.size = 0
        self._place(code=True)
        self.code_size = self.size = -(-self.size // mmap.PAGESIZE) * mmap.PAGESIZE
        self._place(code=False)
        entry = next(one for one in self._object.symbols if one.name == function and one.section)
        if self.code_size <= (place := self._place_of(entry.section) + entry.value):
            raise BadObject(f"{function} is no code")
        self.entry = place

    def _place(self, *, code: bool) -> None:
        for index, section in enumerate(self._object.sections):
            if section.is_loaded and section.is_code is code and not self._object.unwinds(section):
                if not section.is_constant:
                    raise BadObject("sections with variables")
                alignment = max(section.alignment, 1)
                self._places[index] = -(-self.size // alignment) * alignment
                self.size = self._places[index] + section.size

    def _place_of(self, section: int) -> int:
        if section not in self._places:
            raise BadObject("a symbol in no section that is loaded")
        return self._places[section]

    def at(self, base: int) -> bytes:
        """Return the contents for memory that begins at ``base``."""
        memory = bytearray(self.size)
        for index, place in self._places.items():
            section = self._object.sections[index]
            memory[place : place + section.size] = self._object.content(section)
        for one in self._object.relocations:
            if one.section in self._places:
                self._fill_in(memory, base, one)
        return bytes(memory)

    def _fill_in(self, memory: bytearray, base: int, one: Relocation) -> None:
        symbol, place = self._object.symbols[one.symbol], self._places[one.section] + one.place
        if symbol.section:
            value = base + self._place_of(symbol.section) + symbol.value + one.addend
        else:
            value = (_process_symbol(symbol.name) or 0) + one.addend
        try:
            if one.kind == _ADDRESS:
                struct.pack_into("<Q", memory, place, value)
            else:
                _DISTANCES[one.kind].pack_into(memory, place, value - base - place)
        except struct.error as error:
            raise BadObject(f"{symbol.name or 'a symbol'} is too far") from error


def _process_symbol(name: str) -> int | None:
    """Return the address of a name that this process defines, or None."""
    try:
        return ctypes.addressof(ctypes.c_char.in_dll(_process(), name))
    except ValueError:
        return None


@functools.cache
def _process() -> Any:
    """Return this process as a library of C functions."""
    process = ctypes.CDLL(None, use_errno=True)
    process.mmap.restype = ctypes.c_void_p
    process.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    process.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    process.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return process


def _mapped(size: int) -> int:
    """Return the address of new writable memory. It is never freed, because threads may run code in it at any time."""
    access, kind = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    address: int | None = _process().mmap(None, size, access, kind, -1, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(address or 0)


def _protect(address: int, size: int, access: int) -> None:
    if size and _process().mprotect(address, size, access):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
