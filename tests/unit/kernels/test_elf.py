"""Object files that would make LLVM end the process are refused before LLVM reads them."""

from __future__ import annotations

import random
import struct
import subprocess
import sys

import pytest
from llvmlite import binding
from support.processes import environment, python

from pellucid.kernels.core import elf, library
from pellucid.kernels.core.definitions import KernelKey

if sys.platform != "linux":
    pytest.skip("object files are ELF on Linux", allow_module_level=True)


@pytest.fixture(scope="module")
def made() -> tuple[str, bytes]:
    """The name of a kernel's function and its object file, which has constants and relocations for them."""
    symbol, _, code = library.compile_kernel(KernelKey("loop.lead")).partition(b"\0")
    return symbol.decode(), code


def here(name: str) -> bool:
    return binding.address_of_symbol(name) is not None


def refused(code: bytes, function: str) -> bool:
    try:
        elf.check(code, function, here)
    except elf.BadObject:
        return True
    return False


def put(code: bytes, at: int, form: str, value: int) -> bytes:
    size = struct.calcsize(form)
    return code[:at] + struct.pack(form, value) + code[at + size :]


def section(code: bytes, kind: int) -> int:
    """The offset of the record of the first section of a kind."""
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
    """LLVM in a subprocess links those of 3,000 damaged files that are accepted, and the subprocess does not crash."""
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
from llvmlite import binding
from pellucid.kernels.core import library
data = sys.stdin.buffer.read()
while data:
    size = int.from_bytes(data[:8], "little")
    code, data = data[8 : 8 + size], data[8 + size :]
    engine = library._execution_engine()
    try:
        engine.add_object_file(binding.ObjectFileRef.from_data(code))
        engine.finalize_object()
    except RuntimeError:
        pass
"""
    given = b"".join(len(one).to_bytes(8, "little") + one for one in passed)
    done = subprocess.run(python(program), input=given, env=environment(), capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
