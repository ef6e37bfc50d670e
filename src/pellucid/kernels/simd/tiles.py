"""The tile registers of AMX: exact products of 16 rows of bytes with 16 other rows, in int32.

Eight registers have up to 16 rows of up to 64 bytes each; a configuration sets the shapes. A product adds A times B to
C. C is (rows, 16 x int32) and A is (rows, K bytes). B has K/4 rows of 16 lanes: byte c of lane n of row k is column
4k+c of weight row n, as in packed weights. Bytes are signed.

On a CPU without the instructions (``PELLUCID_ISA=amx``) the registers are emulated in memory. The emulation uses plain
LLVM, so that kernels with tiles are tested on every machine.

Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils

from pellucid.kernels.simd.emitter import TARGET, Emitter, i8, i16, i32, i64, vec

NATIVE = TARGET.has("amx-int8")
ROWS, ROW_BYTES = 16, 64
TILE_BYTES = ROWS * ROW_BYTES
COUNT = 8
BYTES_AT, ROWS_AT, CONFIG_BYTES = 16, 48, 64  # offsets in the configuration, and its size
STATE_BYTES = CONFIG_BYTES + (0 if NATIVE else COUNT * TILE_BYTES)


class Tiles:
    """Emits operations on the tile registers.

    ``state`` is the address of ``STATE_BYTES`` bytes for the configuration and for emulated registers. Register indices
    are Python integers.
    """

    def __init__(self, e: Any, state: Any) -> None:
        self.e, self.state = e, state

    def configure(self, shapes: list[tuple[Any, int]]) -> None:
        """Set the shape of each register: rows (a Python integer or an i64 value) and bytes of a row."""
        e = self.e
        for at in range(0, CONFIG_BYTES, 16):
            e.store(ir.Constant(vec(i8), [int(at == i == 0) for i in range(16)]), e.at(self.state, at), 16)
        for tile, (rows, nbytes) in enumerate(shapes):
            rows = ir.Constant(i8, rows) if isinstance(rows, int) else e.b.trunc(rows, i8)
            e.store(ir.Constant(i16, nbytes), e.at(self.state, BYTES_AT + 2 * tile), 2)
            e.store(rows, e.at(self.state, ROWS_AT + tile), 1)
        if NATIVE:
            self._run("ldtilecfg", self._pointer(self.state))

    def release(self) -> None:
        """Release the registers, so that the operating system need not save them."""
        if NATIVE:
            self._run("tilerelease")

    def zero(self, tile: int) -> None:
        """Set a register to zero."""
        if NATIVE:
            self._run("tilezero", i8(tile))
        else:
            self._emulate(_zero, self._register(tile))

    def load(self, tile: int, address: Any, stride: Any) -> None:
        """Load a register's rows, which are ``stride`` bytes (i64) apart."""
        if NATIVE:
            self._run("tileloadd64", i8(tile), self._pointer(address), stride)
            return
        self._emulate(_zero, self._register(tile))
        self._emulate(_copy, *self._shape(tile), self._register(tile), i64(ROW_BYTES), address, stride)

    def store(self, tile: int, address: Any, stride: Any) -> None:
        """Store a register's rows ``stride`` bytes (i64) apart."""
        if NATIVE:
            self._run("tilestored64", i8(tile), self._pointer(address), stride)
            return
        self._emulate(_copy, *self._shape(tile), address, stride, self._register(tile), i64(ROW_BYTES))

    def multiply(self, c: int, a: int, b: int) -> None:
        """Add the product of signed bytes in ``a`` and ``b`` to ``c``."""
        if NATIVE:
            self._run("tdpbssd", i8(c), i8(a), i8(b))
            return
        (rows, _), (_, nbytes) = self._shape(c), self._shape(a)
        self._emulate(_multiply, rows, nbytes, *map(self._register, (c, a, b)))

    def _run(self, name: str, *operands: Any) -> None:
        self.e.call(f"llvm.x86.{name}", ir.VoidType(), *operands)

    def _pointer(self, address: Any) -> Any:
        return self.e.b.inttoptr(address, i8.as_pointer())

    def _register(self, tile: int) -> Any:
        return self.e.at(self.state, CONFIG_BYTES + TILE_BYTES * tile)

    def _shape(self, tile: int) -> tuple[Any, Any]:
        """Return the rows and the bytes of a row, as i64."""
        e = self.e
        rows = e.load(e.at(self.state, ROWS_AT + tile), i8, 1)
        return e.b.zext(rows, i64), e.b.zext(e.load(e.at(self.state, BYTES_AT + 2 * tile), i16, 2), i64)

    def _emulate(self, emit: Any, *operands: Any) -> None:
        """Call the function that ``emit`` emits. It is emitted once per module, because kernels call it often."""
        module, name = self.e.b.module, f"tiles.{emit.__name__}"
        function = module.globals.get(name)
        if function is None:
            function = ir.Function(module, ir.FunctionType(ir.VoidType(), [i64] * len(operands)), name)
            function.linkage = "linkonce_odr"
            function.attributes.add("noinline")
            inner = Emitter(ir.IRBuilder(function.append_basic_block()))
            emit(inner, *function.args)
            inner.b.ret_void()
        self.e.b.call(function, operands)


def _zero(e: Emitter, tile: Any) -> None:
    for row in range(ROWS):
        e.store(e.fill(i32, 0), e.at(tile, ROW_BYTES * row), 64)


def _copy(e: Emitter, rows: Any, nbytes: Any, to: Any, to_stride: Any, source: Any, stride: Any) -> None:
    with cgutils.for_range(e.b, rows) as outer:
        row, to_row = (e.b.add(at, e.b.mul(outer.index, by)) for at, by in ((source, stride), (to, to_stride)))
        with cgutils.for_range(e.b, e.b.lshr(nbytes, i64(2))) as inner:
            word = e.times(inner.index, 4)
            e.store(e.load(e.at(row, word), i32, 1), e.at(to_row, word), 1)


def _multiply(e: Emitter, rows: Any, nbytes: Any, c: Any, a: Any, b: Any) -> None:
    with cgutils.for_range(e.b, rows) as outer:
        row = e.times(outer.index, ROW_BYTES)
        to = e.at(c, row)
        with cgutils.for_range(e.b, e.b.lshr(nbytes, i64(2))) as inner:
            values = e.splat(e.load(e.at(e.at(a, row), e.times(inner.index, 4)), i32))
            weights = e.load(e.at(b, e.times(inner.index, ROW_BYTES)), vec(i32))
            e.store(e.b.add(e.load(to, vec(i32)), _dot(e, values, weights)), to)


def _dot(e: Emitter, first: Any, second: Any) -> Any:
    """Return the sum of the products of four signed bytes in each lane; all are 16 x i32."""
    total = e.fill(i32, 0)
    for shift in (24, 16, 8, 0):
        one, other = (e.b.ashr(e.b.shl(x, e.fill(i32, shift)), e.fill(i32, 24)) for x in (first, second))
        total = e.b.add(total, e.b.mul(one, other))
    return total
