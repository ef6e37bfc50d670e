"""Reads object files and checks that they can be linked. LLVM aborts the process on a damaged file.

In: the bytes of an object file. Out: its sections, symbols and relocations, or `BadObject`. The checks cover everything
that a linker (``linker.py``, LLVM's RuntimeDyld) assumes: the file is a little-endian 64-bit ELF object for this
machine; sections, names, symbols and relocations lie within the file; this process defines the undefined symbols. The
instructions themselves cannot be checked.

Source: System V ABI, gABI chapter 4 (https://gabi.xinuos.com/elf/); relocations: the psABI of x86-64 and of AArch64.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

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
        _require(
            not self._names[section.name :].startswith(b".eh_frame\0"), "unwind tables, which are not checked"
        )

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
