"""Checks that LLVM can link an object file. LLVM aborts the process on a damaged file instead of rejecting it.

In: the bytes of an object file. Out: nothing, or `BadObject`. The checks cover what LLVM's linker (RuntimeDyld) relies
on: the file is a little-endian 64-bit ELF object for this machine; sections, names, symbols and relocations are within
it; undefined symbols are defined in this process. The instructions themselves cannot be checked.

Source: System V ABI, gABI chapter 4 (https://gabi.xinuos.com/elf/); relocations: the psABI of x86-64 and of AArch64.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELOCATION = struct.Struct("<QQq")
_RELOCATABLE = 1
_PROGBITS, _SYMTAB, _STRTAB, _RELA, _NOTE, _NOBITS, _GROUP = 1, 2, 3, 4, 7, 8, 17
_UNWIND, _ADDRSIG = 0x70000001, 0x6FFF4C03
_TYPES = {0, _PROGBITS, _SYMTAB, _STRTAB, _RELA, _NOTE, _NOBITS, _GROUP, _UNWIND, _ADDRSIG}
_WRITE, _ALLOCATED, _EXECINSTR, _MERGE, _STRINGS = 0x1, 0x2, 0x4, 0x10, 0x20  # SHF_WRITE, SHF_ALLOC, …
_INFO_LINK, _IN_GROUP, _X86_64_LARGE = 0x40, 0x200, 0x10000000  # SHF_INFO_LINK, SHF_GROUP, SHF_X86_64_LARGE
# Without SHF_COMPRESSED and SHF_TLS.
_FLAGS = _WRITE | _ALLOCATED | _EXECINSTR | _MERGE | _STRINGS | _INFO_LINK | _IN_GROUP | _X86_64_LARGE
_UNDEFINED, _ABSOLUTE, _COMMON = 0, 0xFFF1, 0xFFF2
_STT_SECTION = 3  # the last kind of symbol that has an address; STT_FILE and others follow
_MOST_ZEROS = 1 << 24  # most bytes of a section or symbol without contents
_MOST_ALIGNMENT = 1 << 12

# For each machine: its number in the header, and the relocations that LLVM emits and its linker supports.
_MACHINES: dict[str, tuple[int, frozenset[int]]] = {
    "x86_64": (62, frozenset([1, 2, 4, 9, 10, 11, 24, 25, 27, 29, 41, 42])),
    "aarch64": (
        183,
        frozenset(
            [257, 258, 260, 261, *range(263, 270), 275, 277, 278, 282, 283, 284, 285, 286, 299, 311, 312]
        ),
    ),
}

_WIDE = {1, 24, 25, 27, 29, 257, 260}  # the relocations that fill in 8 bytes


class BadObject(ValueError):
    """LLVM cannot link this object file."""


def check(code: bytes, function: str, outside: Callable[[str], bool]) -> None:
    """Raise `BadObject` unless ``code`` is an object file that can be linked and defines ``function``.

    ``outside`` tells whether this process defines a name that the file does not.
    """
    try:
        _Object(code).check(function, outside)
    except (struct.error, IndexError) as error:
        raise BadObject(str(error)) from error


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise BadObject(what)


def _aligns(value: int) -> bool:
    return value & (value - 1) == 0 and value <= _MOST_ALIGNMENT


def _check_frames(table: bytes) -> set[int]:
    """Check that the records of an unwind table, which LLVM walks when it loads it, are within it and of known form.

    Returns the offsets of the function addresses, which relocations fill in.

    Source: Linux Standard Base 5.0, Core, chapter 10.6.
    """
    at, common, addresses = 0, set[int](), set[int]()
    while at < len(table) and (size := int.from_bytes(table[at : at + 4], "little")):
        _require(8 <= size <= len(table) - at - 4, "an unwind record past the end")
        begins = at + 4
        back = int.from_bytes(table[begins : begins + 4], "little")
        if back == 0:
            # Version 1, augmentation "zR", factors 1 and -8 (-4 on AArch64), a register, relative addresses.
            head = table[begins + 4 : begins + 13]
            _require(head[:6] in (b"\1zR\0\1\x78", b"\1zR\0\1\x7c"), "unknown unwind tables")
            _require(head[7:8] == b"\1" and head[8:9] in (b"\x1b", b"\x1c"), "unknown unwind addresses")
            common.add(at)
        else:
            _require(begins - back in common and size >= 24, "an FDE without its CIE")
            addresses.add(begins + 4)
        at = begins + size
    return addresses


class _Object:
    def __init__(self, code: bytes) -> None:
        self._relocations: frozenset[int] | None
        number, self._relocations = _MACHINES.get(os.uname().machine, (None, None))
        found = _HEADER.unpack_from(code)
        identity, kind, machine, _, _, _, start, _, _, _, _, size, count, names = found
        _require(identity[:7] == b"\x7fELF\x02\x01\x01", "not a little-endian 64-bit ELF file")
        _require(kind == _RELOCATABLE and machine == (number or machine), "not an object for this machine")
        _require(size == _SECTION.size and start + count * size <= len(code), "sections past the end")
        self._code = code
        self._sections = [_SECTION.unpack_from(code, start + i * size) for i in range(count)]
        self._names = self._strings(names)

    def check(self, function: str, outside: Callable[[str], bool]) -> None:
        defined: set[str] = set()
        for index, section in enumerate(self._sections):
            self._check_section(section)
            if section[1] == _SYMTAB:
                defined |= self._check_symbols(index, outside)
        for section in self._sections:
            if section[1] == _RELA:
                self._check_relocations(section)
        _require(function in defined, f"no function {function}")

    def _check_section(self, section: tuple[int, ...]) -> None:
        name, kind, flags, _, offset, size, _, _, alignment, _ = section
        _require(kind in _TYPES and not flags & ~_FLAGS, f"sections of type {kind:#x}, flags {flags:#x}")
        _require(name < len(self._names), "the name of a section past the end")
        within = size <= _MOST_ZEROS if kind == _NOBITS else offset + size <= len(self._code)
        _require(within, "a section past the end")
        _require(_aligns(alignment), f"an alignment of {alignment}")
        if self._unwinds(section):
            _require(bool(flags & _ALLOCATED), "unwind tables that are not loaded")

    def _unwinds(self, section: tuple[int, ...]) -> bool:
        """Whether the linker treats a section as unwind tables."""
        return section[1] == _UNWIND or self._names[section[0] :].startswith(b".eh_frame\0")

    def _strings(self, index: int) -> bytes:
        """Return the contents of a string table."""
        _, kind, _, _, offset, size, *_ = self._sections[index]
        found = self._code[offset : offset + size]
        _require(
            kind == _STRTAB and len(found) == size and found[-1:] == b"\0", "a table of names is cut off"
        )
        return found

    def _check_symbols(self, index: int, outside: Callable[[str], bool]) -> set[str]:
        """Check a symbol table. Returns the names that it defines."""
        _, _, _, _, offset, size, link, _, _, each = self._sections[index]
        _require(each == _SYMBOL.size and size % each == 0, "a table of symbols is cut off")
        names, defined = self._strings(link), set[str]()
        for at, symbol in enumerate(_SYMBOL.iter_unpack(self._code[offset : offset + size])):
            name, _, _, place, value, length = symbol
            _require(name < len(names), "the name of a symbol past the end")
            text = names[name : names.index(b"\0", name)].decode("utf-8", "replace")
            if place == _UNDEFINED:
                _require(at == 0 or outside(text), f"{text} is not in this process")
            elif place == _COMMON:
                _require(
                    value > 0 and _aligns(value) and length <= _MOST_ZEROS, f"{text} needs {length} bytes"
                )
            elif place != _ABSOLUTE:
                _require(value + length <= self._sections[place][5], f"{text} past the end of its section")
                defined.add(text)
        return defined

    def _check_relocations(self, section: tuple[int, ...]) -> None:
        _, _, _, _, offset, size, link, target, _, each = section
        _require(each == _RELOCATION.size and size % each == 0, "a table of relocations is cut off")
        symbols, room = self._sections[link], self._sections[target][5]
        _require(symbols[1] == _SYMTAB, "relocations without symbols")
        kinds = [one[1] & 15 for one in _SYMBOL.iter_unpack(self._code[symbols[4] : symbols[4] + symbols[5]])]
        _, kind, flags, _, begins, length, *_ = self._sections[target]
        found = list(_RELOCATION.iter_unpack(self._code[offset : offset + size]))
        _require(
            kind in (_PROGBITS, _UNWIND) and bool(flags & _ALLOCATED), "relocations of what is not loaded"
        )
        known = self._relocations
        if self._unwinds(self._sections[target]):
            addresses = _check_frames(self._code[begins : begins + length])
            _require(
                sorted(place for place, *_ in found) == sorted(addresses), "unwind records of no function"
            )
        for place, what, _ in found:
            width = 8 if what & 0xFFFFFFFF in _WIDE else 4
            _require(place + width <= room, "a relocation past the end")
            _require(kinds[what >> 32] <= _STT_SECTION, "a relocation to what has no place")
            _require(known is None or what & 0xFFFFFFFF in known, f"relocations of type {what & 0xFFFFFFFF}")
