"""Object files that cannot be linked are refused. Accepted files can be linked, for this machine and for Arm."""

from __future__ import annotations

import ctypes
import random
import struct
import subprocess
from pathlib import Path

import pytest
from support.processes import environment, python

from pellucid.kernels.core import code_memory, library, linker
from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.core.host import host
from pellucid.kernels.core.library import ENTRY

if not linker.without_llvm():
    pytest.skip("LLVM links here", allow_module_level=True)


@pytest.fixture(scope="module")
def made() -> tuple[str, bytes]:
    """Name of a kernel's function, and its object file with constants and their relocations."""
    return ENTRY, library.compile_kernel(KernelKey("loop.lead"))


def here(name: str) -> bool:
    return code_memory.symbol(name) is not None


def refused(code: bytes, function: str) -> bool:
    try:
        linker.ObjectFile(code, function, host().machine, here)
    except linker.BadObject:
        with pytest.raises(linker.BadObject):
            linker.link(code, function)
        return True
    return False


def put(code: bytes, at: int, form: str, value: int) -> bytes:
    size = struct.calcsize(form)
    return code[:at] + struct.pack(form, value) + code[at + size :]


def section(code: bytes, kind: int) -> int:
    """Offset of the header of the first section of a kind."""
    (start,) = struct.unpack_from("<Q", code, 40)
    count = struct.unpack_from("<H", code, 60)[0]
    places = [start + 64 * i for i in range(count)]
    return next(at for at in places if struct.unpack_from("<I", code, at + 4)[0] == kind)


def test_what_the_compiler_makes_passes(made: tuple[str, bytes]) -> None:
    function, code = made
    assert not refused(code, function)
    assert refused(code, "another")


@pytest.mark.parametrize(
    ("at", "form", "value"),
    [
        (0, "<I", 0),
        (4, "<B", 1),  # 32 bits
        (5, "<B", 2),  # big-endian
        (16, "<H", 2),  # an executable
        (18, "<H", 40),  # for another machine
        (40, "<Q", 1 << 40),
        (40, "<Q", 1 << 63),
        (58, "<H", 32),
        (60, "<H", 0),
        (60, "<H", 0xFFFF),
        (62, "<H", 0xFFF0),
    ],
)
def test_a_damaged_header(made: tuple[str, bytes], at: int, form: str, value: int) -> None:
    function, code = made
    assert refused(put(code, at, form, value), function)


@pytest.mark.parametrize(
    ("kind", "at", "form", "value"),
    [
        *((kind, 24, "<Q", 1 << 62) for kind in (1, 2, 3, 4)),  # contents begin past the end
        *((kind, 32, "<Q", 1 << 62) for kind in (1, 2, 3, 4)),  # contents are too long
        *((kind, 0, "<I", 1 << 30) for kind in (1, 2, 3, 4)),  # name is past the end
        (1, 4, "<I", 6),  # a type that is not expected here
        (1, 48, "<Q", 3),  # invalid alignment
        (2, 40, "<I", 0),  # symbols without names
        (2, 56, "<Q", 16),
        (4, 40, "<I", 1),  # relocations without symbols
        (4, 44, "<I", 0),  # relocations of no section
        (4, 56, "<Q", 0),
    ],
)
def test_a_damaged_section(made: tuple[str, bytes], kind: int, at: int, form: str, value: int) -> None:
    function, code = made
    assert refused(put(code, section(code, kind) + at, form, value), function)


@pytest.mark.parametrize(("at", "form", "value"), [(0, "<Q", 1 << 40), (8, "<I", 250), (12, "<I", 1 << 20)])
def test_a_damaged_relocation(made: tuple[str, bytes], at: int, form: str, value: int) -> None:
    function, code = made
    (first,) = struct.unpack_from("<Q", code, section(code, 4) + 24)
    assert refused(put(code, first + at, form, value), function)


def test_a_name_that_is_not_in_this_process(made: tuple[str, bytes]) -> None:
    function, code = made
    assert code.count(b"sched_yield\0") == 1
    assert refused(code.replace(b"sched_yield\0", b"sched_wield\0"), function)


@pytest.mark.slow
def test_whatever_is_accepted_can_be_linked(made: tuple[str, bytes]) -> None:
    """A subprocess links all accepted files of 3,000 damaged files without a crash."""
    function, code = made
    numbers, damaged = random.Random(0), []
    while len(damaged) < 3000:
        changed = bytearray(code)
        for _ in range(numbers.choice([1, 1, 2, 8])):
            at = numbers.randrange(len(code))
            changed[at] = numbers.choice([0, 255, changed[at] ^ 1 << numbers.randrange(8)])
        damaged.append(bytes(changed[: numbers.choice([len(code), len(code), numbers.randrange(len(code))])]))
    passed = [one for one in damaged if not refused(one, function)]
    assert 100 < len(passed) < 2900
    program = """
import sys
from pellucid.kernels.core import linker
data, function = sys.stdin.buffer.read(), sys.argv[1]
linked = 0
while data:
    size = int.from_bytes(data[:8], "little")
    code, data = data[8 : 8 + size], data[8 + size :]
    try:
        linker.link(code, function)
        linked += 1
    except linker.BadObject:
        pass
print(linked)
"""
    given = b"".join(len(one).to_bytes(8, "little") + one for one in passed)
    command = python(program, function)
    done = subprocess.run(command, input=given, env=environment(), capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert int(done.stdout) > 100


@pytest.mark.skipif(host().machine != "x86_64", reason="relocations of x86-64")
@pytest.mark.parametrize("name", ["softcap", "loop.lead", "logits.softmax"])
def test_code_and_constants_are_placed_and_addresses_filled_in(name: str) -> None:
    """Bytes in memory equal the file, except for relocations: S + A, or S + A - P. Calls outside go over a jump."""
    code = library.compile_kernel(KernelKey(name))
    image = linker._Image(code, ENTRY)
    address = linker.link(code, ENTRY)
    base, found = address - image.entry, image._object
    placed = {
        index: bytearray(ctypes.string_at(base + at, found.sections[index].size)) for index, at in image._places.items()
    }
    stored = {index: bytearray(found.content(found.sections[index])) for index in placed}
    filled = [one for one in found.relocations if one.section in placed]
    assert filled
    for one in filled:
        target = found.symbols[one.symbol]
        at = image._places[target.section] + target.value if target.section else image._jumps[target.name]
        value = base + at + one.addend
        if one.kind != 1:
            value -= base + image._places[one.section] + one.place
        form = "<Q" if one.kind == 1 else "<q" if one.kind == 24 else "<i"
        (written,) = struct.unpack_from(form, placed[one.section], one.place)
        assert written == value
        for memory in (placed, stored):
            memory[one.section][one.place : one.place + struct.calcsize(form)] = bytes(struct.calcsize(form))
    assert placed == stored
    for symbol, at in image._jumps.items():
        jump = ctypes.string_at(base + at, 14)
        assert (jump[:6], int.from_bytes(jump[6:], "little")) == (b"\xff\x25\0\0\0\0", code_memory.symbol(symbol))
    lines = Path("/proc/self/maps").read_text().splitlines()
    for at, mode in ((address, "r-xp"), (base + image.code_size, "r--p")):
        if at < base + image.size:
            assert [line.split()[1] for line in lines if _holds(line, at)] == [mode]


@pytest.mark.parametrize(
    ("kind", "before", "distance", "address", "after"),
    [
        (283, 0x94000000, 0x1000, 0, 0x94000400),  # bl, forward
        (282, 0x14000000, -8, 0, 0x17FFFFFE),  # b, back
        (264, 0xF2800001, 0, 0x123456789ABCDEF0, 0xF29BDE01),  # movk x1, #0xdef0
        (266, 0xF2A00001, 0, 0x123456789ABCDEF0, 0xF2B35781),  # movk x1, #0x9abc, lsl #16
        (268, 0xF2C00001, 0, 0x123456789ABCDEF0, 0xF2CACF01),  # movk x1, #0x5678, lsl #32
        (269, 0xD2E00001, 0, 0x123456789ABCDEF0, 0xD2E24681),  # movz x1, #0x1234, lsl #48
    ],
)
def test_instructions_of_arm_hold_addresses(kind: int, before: int, distance: int, address: int, after: int) -> None:
    memory = bytearray(struct.pack("<I", before))
    linker._AARCH64[kind](memory, 0, address, distance)
    assert struct.unpack("<I", memory) == (after,)


@pytest.mark.parametrize("distance", [1 << 27, -(1 << 27) - 4, 2])
def test_a_branch_of_arm_that_does_not_reach_is_refused(distance: int) -> None:
    with pytest.raises(struct.error):
        linker._AARCH64[283](bytearray(4), 0, 0, distance)


def _holds(line: str, address: int) -> bool:
    first, last = (int(one, 16) for one in line.split()[0].split("-"))
    return first <= address < last


def test_what_is_linked_without_llvm_imports_none_of_it() -> None:
    program = """
import sys
from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.core.library import shared
shared().load([KernelKey("softcap")])
print([name for name in sys.modules if name.startswith(("llvmlite", "numba"))])
"""
    library.shared().load([KernelKey("softcap")])
    done = subprocess.run(python(program), env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", [b"_FuncPtr", b"_handle", b"_name", b"no_such_name"])
def test_only_symbols_of_the_process_are_found(made: tuple[str, bytes], name: bytes) -> None:
    function, code = made
    replaced = code.replace(b"sched_yield\0", (name + b"\0" * 12)[:12])
    assert replaced != code
    with pytest.raises(linker.BadObject, match="is not in this process"):
        linker.link(replaced, function)


def test_llvm_links_on_other_architectures() -> None:
    """In a new process that has not started LLVM yet."""
    program = """
import platform
from pellucid.kernels.core import linker
linker.without_llvm = lambda: False
from pellucid.kernels.core import library
from pellucid.kernels.core.definitions import KernelKey
def refused(key): raise SystemExit(f"{key} is compiled again")
library.compile_kernel = refused
print(library.shared().load([KernelKey("loop.lead"), KernelKey("loop.work")]))
"""
    keys = [KernelKey("loop.lead"), KernelKey("loop.work")]
    library.shared().load(keys)
    done = subprocess.run(python(program), env=environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
