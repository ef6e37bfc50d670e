"""Links object files into this process: places their sections in memory and fills in addresses.

In: the bytes of an object file and the name of its function. Out: the function's address. Linked code stays until the
process ends.

Objects are ELF files on all systems. x86-64 and AArch64 are linked here, without LLVM, which takes 40 ms to load and 1
ms more for each kernel. On other architectures LLVM links.

Sources: System V ABI, AMD64 supplement, section 4.4 (https://gitlab.com/x86-psABIs/x86-64-ABI); ELF for the Arm 64-bit
Architecture, section 5.7 (https://github.com/ARM-software/abi-aa).
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from typing import Any

from pellucid.kernels.core import code_memory
from pellucid.kernels.core.elf import BadObject, ObjectFile, Relocation
from pellucid.kernels.core.host import host

_engines: list[Any] = []  # LLVM's engines, which hold the code that they have linked
_MOVES = {
    263: 0,
    264: 0,
    265: 16,
    266: 16,
    267: 32,
    268: 32,
    269: 48,
}  # R_AARCH64_MOVW_UABS_G0 to _G3: the shift
_PIECE = 0xFFFF << 5  # the 16 bits of an address in movz and movk
_BRANCH = 0x03FFFFFF  # the distance in a branch, in instructions


def without_llvm() -> bool:
    """True if objects for this machine are linked without LLVM."""
    return host().machine in _PATCHES


def link(code: bytes, function: str) -> int:
    """Link an object file that may be damaged. Returns the address of its function.

    Raises:
        BadObject: the file is damaged, or needs a symbol that this process does not have.
        OSError: the system does not provide memory for code.
    """
    if not without_llvm():
        _read(code, function)  # LLVM aborts the process on a damaged file
        return _link_with_llvm(code, function)
    image = _Image(code, function)
    base = code_memory.reserve(image.size)
    code_memory.fill(base, image.at(base), image.code_size)
    return base + image.entry


def _link_with_llvm(code: bytes, function: str) -> int:
    """Link an object file that ``_read`` accepts. Raises BadObject."""
    from llvmlite import binding

    # Each kernel has its own engine. In a shared engine a kernel could be linked to another kernel's helper of the same
    # name.
    engine = _execution_engine()
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


def _execution_engine() -> Any:
    """Create an LLVM engine, which links object files."""
    from llvmlite import binding

    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    target = binding.Target.from_triple(binding.get_process_triple())
    module = binding.parse_assembly("")
    module.triple = binding.get_process_triple()
    return binding.create_mcjit_compiler(module, target.create_target_machine(jit=True))


def _read(code: bytes, function: str) -> ObjectFile:
    return ObjectFile(code, function, host().machine, lambda name: code_memory.symbol(name) is not None)


class _Image:
    """The loaded part of an object file: its code, jumps to functions of this process, and constants on further pages.

    Raises:
        BadObject: the file is damaged, or has variables.
    """

    def __init__(self, code: bytes, function: str) -> None:
        self._object = _read(code, function)
        self._patches, self._jump = _PATCHES[host().machine], _JUMPS[host().machine]
        self._places: dict[int, int] = {}
        self._jumps: dict[str, int] = {}
        self.size = 0
        self._place(code=True)
        self._place_jumps()
        self.code_size = self.size = -(-self.size // mmap.PAGESIZE) * mmap.PAGESIZE
        self._place(code=False)
        entry = next(one for one in self._object.symbols if one.name == function and one.section)
        if self.code_size <= (place := self._place_of(entry.section) + entry.value):
            raise BadObject(f"{function} is no code")
        self.entry = place

    def _place(self, *, code: bool) -> None:
        for index, section in enumerate(self._object.sections):
            if section.is_loaded and section.is_code is code:
                if not section.is_constant:
                    raise BadObject("sections with variables")
                alignment = max(section.alignment, 1)
                self._places[index] = -(-self.size // alignment) * alignment
                self.size = self._places[index] + section.size

    def _place_jumps(self) -> None:
        """Place a jump for each function outside the object, because branches reach less far than the process."""
        for one in self._object.relocations:
            symbol = self._object.symbols[one.symbol]
            if not symbol.section and symbol.name not in self._jumps:
                self._jumps[symbol.name] = -(-self.size // 8) * 8
                self.size = self._jumps[symbol.name] + len(self._jump) + 8

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
        for name, place in self._jumps.items():
            address = struct.pack("<Q", code_memory.symbol(name) or 0)
            memory[place : place + len(self._jump) + 8] = self._jump + address
        for one in self._object.relocations:
            if one.section in self._places:
                self._fill_in(memory, base, one)
        return bytes(memory)

    def _fill_in(self, memory: bytearray, base: int, one: Relocation) -> None:
        symbol, place = self._object.symbols[one.symbol], self._places[one.section] + one.place
        if symbol.section:
            value = self._place_of(symbol.section) + symbol.value + one.addend
        elif one.addend > 0:
            raise BadObject(f"a place within {symbol.name}")
        else:
            value = self._jumps[symbol.name] + one.addend
        try:
            self._patches[one.kind](memory, place, base + value, value - place)
        except struct.error as error:
            raise BadObject(f"{symbol.name or 'a symbol'} is too far") from error


Patch = Callable[[bytearray, int, int, int], None]
"""Writes a value to a place in memory: (memory, place, the value's address, its distance from the place)."""


def _address(memory: bytearray, place: int, address: int, distance: int) -> None:
    struct.pack_into("<Q", memory, place, address)


def _distance(kind: str) -> Patch:
    def patch(memory: bytearray, place: int, address: int, distance: int) -> None:
        struct.pack_into(kind, memory, place, distance)

    return patch


def _move(shift: int) -> Patch:
    def patch(memory: bytearray, place: int, address: int, distance: int) -> None:
        _set_bits(memory, place, _PIECE, (address >> shift & 0xFFFF) << 5)

    return patch


def _branch(memory: bytearray, place: int, address: int, distance: int) -> None:
    if distance % 4 or not -(1 << 27) <= distance < 1 << 27:
        raise struct.error
    _set_bits(memory, place, _BRANCH, distance >> 2 & _BRANCH)


def _set_bits(memory: bytearray, place: int, mask: int, bits: int) -> None:
    (instruction,) = struct.unpack_from("<I", memory, place)
    struct.pack_into("<I", memory, place, instruction & ~mask | bits)


# R_X86_64_64, _PC32, _PLT32, _PC64.
_X86_64: dict[int, Patch] = {1: _address, 2: _distance("<i"), 4: _distance("<i"), 24: _distance("<q")}
# R_AARCH64_ABS64, _PREL64, _PREL32, _MOVW_UABS_G0 to _G3, _JUMP26, _CALL26.
_AARCH64: dict[int, Patch] = {
    257: _address, 260: _distance("<q"), 261: _distance("<i"), 282: _branch, 283: _branch,
    **{kind: _move(shift) for kind, shift in _MOVES.items()},
}  # fmt: skip
_PATCHES = {"x86_64": _X86_64, "aarch64": _AARCH64}
# Instructions that jump to the address in the 8 bytes after them.
_JUMPS = {"x86_64": bytes.fromhex("ff2500000000"), "aarch64": bytes.fromhex("50000058 00021fd6")}
