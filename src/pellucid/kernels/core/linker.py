"""Links object files into this process, after checks: LLVM aborts the process on a damaged file."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from pellucid.kernels.core import code_memory
from pellucid.kernels.core.host import host

# Reads object files and checks that they can be linked. LLVM aborts the process on a damaged file.
#
# In: the bytes of an object file. Out: its sections, symbols and relocations, or `BadObject`. The checks cover
# everything that a linker (``linker.py``, LLVM's RuntimeDyld) assumes: the file is a little-endian 64-bit ELF object
# for this machine; sections, names, symbols and relocations lie within the file; this process defines the undefined
# symbols. The instructions themselves cannot be checked.
#
# Source: System V ABI, gABI chapter 4 (https://gabi.xinuos.com/elf/); relocations: the psABI of x86-64 and of AArch64.

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELOCATION = struct.Struct("<QQq")
_RELOCATABLE = 1
_PROGBITS, _SYMTAB, _STRTAB, _RELA, _NOTE, _NOBITS, _GROUP = 1, 2, 3, 4, 7, 8, 17
_ADDRSIG = 0x6FFF4C03
_TYPES = {0, _PROGBITS, _SYMTAB, _STRTAB, _RELA, _NOTE, _NOBITS, _GROUP, _ADDRSIG}
_WRITE, _ALLOCATED, _EXECINSTR, _MERGE, _STRINGS = 0x1, 0x2, 0x4, 0x10, 0x20  # SHF_WRITE, SHF_ALLOC, …
_INFO_LINK, _IN_GROUP, _X86_64_LARGE = 0x40, 0x200, 0x10000000  # SHF_INFO_LINK, SHF_GROUP, SHF_X86_64_LARGE
# Accepted flags. SHF_COMPRESSED and SHF_TLS are not accepted.
_FLAGS = _WRITE | _ALLOCATED | _EXECINSTR | _MERGE | _STRINGS | _INFO_LINK | _IN_GROUP | _X86_64_LARGE
_UNDEFINED, _ABSOLUTE, _COMMON = 0, 0xFFF1, 0xFFF2
_STT_SECTION = 3  # the last kind of symbol that has an address; STT_FILE and others follow
_MAX_ZEROS = 1 << 24  # maximum size in bytes of a section or symbol without contents
_MAX_ALIGNMENT = 1 << 12

# For each machine: its number in the header, and the types of relocations that a linker supports (``linker.py``).
_MACHINES: dict[str, tuple[int, frozenset[int]]] = {
    "x86_64": (62, frozenset([1, 2, 4, 24])),
    "aarch64": (183, frozenset([257, 260, 261, *range(263, 270), 282, 283])),
}

_WIDE = {1, 24, 257, 260}  # types of relocations that fill in 8 bytes


class BadObject(ValueError):
    """The object file cannot be linked."""


class Section(NamedTuple):
    """A section header: ``name`` is an offset into the table of names, ``info`` the index of the target section."""

    name: int
    kind: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    alignment: int
    each: int

    @property
    def is_loaded(self) -> bool:
        """True if the section is part of the loaded program."""
        return bool(self.flags & _ALLOCATED)

    @property
    def is_code(self) -> bool:
        """True if the section holds instructions."""
        return bool(self.flags & _EXECINSTR)

    @property
    def is_constant(self) -> bool:
        """True if the contents are in the file and never change."""
        return self.kind != _NOBITS and not self.flags & _WRITE


class Symbol(NamedTuple):
    """A symbol: ``value`` is its offset in the section with index ``section`` (0: the symbol is undefined)."""

    name: str
    section: int
    value: int


class Relocation(NamedTuple):
    """A place in a section that a linker fills in with a symbol's address. ``section`` and ``symbol`` are indices."""

    section: int
    place: int
    kind: int
    symbol: int
    addend: int


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise BadObject(what)


def _aligns(value: int) -> bool:
    return value & (value - 1) == 0 and value <= _MAX_ALIGNMENT


class ObjectFile:
    """An object file that can be linked and defines ``function``.

    ``machine`` is the architecture, as ``host.py`` names it. ``outside`` returns True if this process defines a name
    that the file does not define.

    Raises:
        BadObject: the file is damaged, or is not an object file for this machine.
    """

    def __init__(self, code: bytes, function: str, machine: str, outside: Callable[[str], bool]) -> None:
        self.sections: list[Section] = []
        self.symbols: list[Symbol] = []
        self.relocations: list[Relocation] = []
        try:
            self._read(code, machine, outside)
        except (struct.error, IndexError) as error:
            raise BadObject(str(error)) from error
        _require(any(one.name == function and one.section for one in self.symbols), f"no function {function}")

    def content(self, section: Section) -> bytes:
        """Return the bytes of a section."""
        return self._code[section.offset : section.offset + section.size]

    def _read(self, code: bytes, name: str, outside: Callable[[str], bool]) -> None:
        self._known: frozenset[int] | None
        number, self._known = _MACHINES.get(name, (None, None))
        header = _HEADER.unpack_from(code)
        identity, kind, machine, _, _, _, start, _, _, _, _, size, count, names = header
        _require(identity[:7] == b"\x7fELF\x02\x01\x01", "not a little-endian 64-bit ELF file")
        _require(kind == _RELOCATABLE and machine == (number or machine), "not an object for this machine")
        _require(size == _SECTION.size and start + count * size <= len(code), "sections past the end")
        self._code = code
        self.sections = [Section(*_SECTION.unpack_from(code, start + i * size)) for i in range(count)]
        self._names = self._strings(names)
        for section in self.sections:
            self._check_section(section)
        tables = [section for section in self.sections if section.kind == _SYMTAB]
        _require(len(tables) == 1, f"{len(tables)} tables of symbols")
        self._kinds: list[int] = []
        self.symbols = list(self._read_symbols(tables[0], outside))
        for section in self.sections:
            if section.kind == _RELA:
                self.relocations += self._read_relocations(section)

    def _check_section(self, section: Section) -> None:
        kind, flags = section.kind, section.flags
        _require(kind in _TYPES and not flags & ~_FLAGS, f"sections of type {kind:#x}, flags {flags:#x}")
        _require(section.name < len(self._names), "the name of a section past the end")
        within = section.offset + section.size <= len(self._code)
        _require(section.size <= _MAX_ZEROS if kind == _NOBITS else within, "a section past the end")
        _require(_aligns(section.alignment), f"an alignment of {section.alignment}")
        _require(not self._names[section.name :].startswith(b".eh_frame\0"), "unwind tables, which are not checked")

    def _strings(self, index: int) -> bytes:
        """Return the contents of a string table."""
        section = self.sections[index]
        text = self.content(section)
        is_complete = len(text) == section.size and text[-1:] == b"\0"
        _require(section.kind == _STRTAB and is_complete, "a table of names is cut off")
        return text

    def _read_symbols(self, table: Section, outside: Callable[[str], bool]) -> Iterator[Symbol]:
        _require(table.each == _SYMBOL.size and table.size % table.each == 0, "a table of symbols is cut off")
        names = self._strings(table.link)
        for at, symbol in enumerate(_SYMBOL.iter_unpack(self.content(table))):
            name, info, _, place, value, length = symbol
            _require(name < len(names), "the name of a symbol past the end")
            text = names[name : names.index(b"\0", name)].decode("utf-8", "replace")
            if place == _UNDEFINED:
                _require(at == 0 or outside(text), f"{text} is not in this process")
            elif place == _COMMON:
                within = value > 0 and _aligns(value) and length <= _MAX_ZEROS
                _require(within, f"{text} needs {length} bytes")
            elif place != _ABSOLUTE:
                _require(value + length <= self.sections[place].size, f"{text} past the end of its section")
            self._kinds.append(info & 15)
            yield Symbol(text, place, value)

    def _read_relocations(self, table: Section) -> Iterator[Relocation]:
        _require(table.each == _RELOCATION.size and table.size % table.each == 0, "relocations are cut off")
        _require(self.sections[table.link].kind == _SYMTAB, "relocations without symbols")
        target = self.sections[table.info]
        loaded = target.kind == _PROGBITS and target.is_loaded
        _require(loaded, "relocations of a section that is not loaded")
        entries = list(_RELOCATION.iter_unpack(self.content(table)))
        for place, info, addend in entries:
            kind, symbol = info & 0xFFFFFFFF, info >> 32
            _require(self._known is None or kind in self._known, f"relocations of type {kind}")
            _require(place + (8 if kind in _WIDE else 4) <= target.size, "a relocation past the end")
            _require(self._kinds[symbol] <= _STT_SECTION, "a relocation to a symbol without an address")
            yield Relocation(table.info, place, kind, symbol, addend)


# Links object files into this process: places their sections in memory and fills in addresses.
#
# In: the bytes of an object file and the name of its function. Out: the function's address. Linked code stays until the
# process ends.
#
# Objects are ELF files on all systems. x86-64 and AArch64 are linked here, without LLVM, which takes 40 ms to load and
# 1 ms more for each kernel. On other architectures LLVM links.
#
# Sources: System V ABI, AMD64 supplement, section 4.4 (https://gitlab.com/x86-psABIs/x86-64-ABI); ELF for the Arm
# 64-bit Architecture, section 5.7 (https://github.com/ARM-software/abi-aa).

_engines: list[Any] = []  # LLVM's engines, which hold the code that they have linked
_MOVES = {263: 0, 264: 0, 265: 16, 266: 16, 267: 32, 268: 32, 269: 48}  # R_AARCH64_MOVW_UABS_G0 to _G3: the shift
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
