"""Vector types, and ``Emitter``: emits LLVM instructions; ``emitted_op`` and ``inner_loop`` make Numba intrinsics."""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel.models import PrimitiveModel
from numba.extending import intrinsic, register_model

from pellucid.kernels.core import compiler

# The vector types, for LLVM and for Numba.
#
# A vector has 16 lanes on all hardware. LLVM splits it if registers are narrower. Every sum therefore has the same
# order on every machine, and the same bits on every machine with a fused multiply-add.

LANES = 16
TARGET = compiler.TARGET
ISA = TARGET.isa

i8, i16, i32, i64 = (ir.IntType(n) for n in (8, 16, 32, 64))
f16, f32, f64 = ir.HalfType(), ir.FloatType(), ir.DoubleType()
STORED = {"f32": f32, "f16": f16, "bf16": i16}
KERNEL_SIGNATURE = types.void(types.int64, types.int64, types.int64, types.int64)


def vec(element, lanes=LANES):
    return ir.VectorType(element, lanes)


class VectorType(types.Type):
    """Numba's type of a vector of ``LANES`` elements."""

    def __init__(self, element: str) -> None:
        self.element = element
        super().__init__(f"{element}x{LANES}")


F32x16, I32x16, F64x16 = VectorType("f32"), VectorType("i32"), VectorType("f64")


@register_model(VectorType)
class VectorModel(PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, vec({"f32": f32, "i32": i32, "f64": f64}[fe_type.element]))


# Conversions between half precision and float32, of numbers and of vectors.
#
# x86-64 processors without F16C have no instructions for them. LLVM then calls functions that not every process has, so
# they are computed with integers.
#
# Source of the method: F. Giesen, "Float->half variants" (public domain, 2012).

CONVERTS = TARGET.machine == "aarch64" or TARGET.has("f16c")
_EXPONENT = 0x7C00 << 13  # the exponent of infinities and NaN, where a float32 has it
_INFINITY, _SIGN = 0x7F800000, 0x80000000
_OVERFLOW, _NORMAL = 0x47800000, 0x38800000  # 2**16 and 2**-14 as float32
_TO_DENORMAL = 0x3F000000  # 0.5: adding it rounds a float32 to multiples of 2**-24


def from_half(b, value):
    """Return halves as float32, exactly."""
    if CONVERTS:
        return b.fpext(value, _like(value, f32))
    h = b.zext(b.bitcast(value, _like(value, i16)), _like(value, i32))
    number = b.shl(b.and_(h, _filled(h, i32, 0x7FFF)), _filled(h, i32, 13))
    scaled = b.fmul(b.bitcast(number, _like(h, f32)), _filled(h, f32, 2.0**112))
    bits = b.bitcast(scaled, h.type)
    special = b.icmp_unsigned(">=", number, _filled(h, i32, _EXPONENT))
    bits = b.select(special, b.or_(bits, _filled(h, i32, _INFINITY)), bits)
    sign = b.shl(b.and_(h, _filled(h, i32, 0x8000)), _filled(h, i32, 16))
    return b.bitcast(b.or_(bits, sign), _like(h, f32))


def to_half(b, value):
    """Return float32 numbers as halves, rounded to nearest, ties to even."""
    if CONVERTS:
        return b.fptrunc(value, _like(value, f16))
    x = b.bitcast(value, _like(value, i32))
    sign = b.and_(x, _filled(x, i32, _SIGN))
    x = b.xor(x, sign)
    odd = b.and_(b.lshr(x, _filled(x, i32, 13)), _filled(x, i32, 1))
    # The exponent's bias changes by 112; 0xFFF and the last bit round.
    normal = b.lshr(b.add(b.add(x, _filled(x, i32, (-112 << 23) + 0xFFF)), odd), _filled(x, i32, 13))
    moved = b.fadd(b.bitcast(x, _like(x, f32)), _filled(x, f32, 0.5))
    small = b.sub(b.bitcast(moved, x.type), _filled(x, i32, _TO_DENORMAL))
    bits = b.select(b.icmp_unsigned("<", x, _filled(x, i32, _NORMAL)), small, normal)
    nan = b.icmp_unsigned(">", x, _filled(x, i32, _INFINITY))
    large = b.select(nan, _filled(x, i32, 0x7E00), _filled(x, i32, 0x7C00))
    bits = b.select(b.icmp_unsigned(">=", x, _filled(x, i32, _OVERFLOW)), large, bits)
    bits = b.or_(bits, b.lshr(sign, _filled(x, i32, 16)))
    return b.bitcast(b.trunc(bits, _like(x, i16)), _like(x, f16))


def _like(value, element):
    """Return the type of ``element`` with as many lanes as ``value``."""
    return vec(element, value.type.count) if isinstance(value.type, ir.VectorType) else element


def _filled(value, element, number):
    """Return a constant with as many lanes as ``value``."""
    kind = _like(value, element)
    return ir.Constant(kind, [number] * kind.count if isinstance(kind, ir.VectorType) else number)


# ``Emitter`` emits LLVM instructions for kernels; ``emitted_op`` and ``inner_loop`` make Numba intrinsics of them.

# The constraint letters that inline assembly uses for vector registers.
_REGISTER = {"avx512vnni": "v", "avxvnni": "x", "avx2": "x", "neon": "w"}
# Byte lookup in a 16-byte table, one register at a time: (table, indices) -> entries.
_LOOKUP = {
    "avx512vnni": "llvm.x86.avx512.pshuf.b.512",
    "avxvnni": "llvm.x86.avx2.pshuf.b",
    "avx2": "llvm.x86.avx2.pshuf.b",
    "neon": "llvm.aarch64.neon.tbl1.v16i8",
}


class Emitter:
    """Emits the instructions that kernels are built from. Addresses are i64 values."""

    def __init__(self, builder) -> None:
        self.b = builder

    def const(self, n: int):
        return ir.Constant(i64, n)

    def at(self, address, offset):
        """Return address + offset. ``offset`` is an i64 value or a Python integer."""
        if isinstance(offset, int):
            if offset == 0:
                return address
            offset = self.const(offset)
        return self.b.add(address, offset)

    def times(self, a, n: int):
        return self.b.mul(a, self.const(n))

    def load(self, address, kind, align: int = 4):
        pointer = self.b.inttoptr(address, kind.as_pointer())
        return self.b.load(pointer, align=align)

    def store(self, value, address, align: int = 4) -> None:
        pointer = self.b.inttoptr(address, value.type.as_pointer())
        self.b.store(value, pointer, align=align)

    def splat(self, value, lanes: int = LANES):
        kind = vec(value.type, lanes)
        one = self.b.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(i32, 0))
        return self.b.shuffle_vector(one, ir.Constant(kind, ir.Undefined), ir.Constant(vec(i32, lanes), [0] * lanes))

    def fill(self, kind, value, lanes: int = LANES):
        return ir.Constant(vec(kind, lanes), [value] * lanes)

    def call(self, name: str, result, *args):
        kind = ir.FunctionType(result, [a.type for a in args])
        return self.b.call(cgutils.get_or_insert_function(self.b.module, kind, name), args)

    def fma(self, x, y, z):
        """Return x * y + z, rounded once."""
        return self.call("llvm.fma.v16f32", x.type, x, y, z)

    def widen(self, value, kind: str):
        """Convert stored floats of ``kind`` ("f16", 16 "bf16" as i16, "f32") to float32."""
        if kind == "f16":
            return from_half(self.b, value)
        if kind == "bf16":
            wide = self.b.shl(self.b.zext(value, vec(i32)), self.fill(i32, 16))
            return self.b.bitcast(wide, vec(f32))
        return value

    def lanes(self, value, which):
        """Return the lanes numbered ``which`` as a vector."""
        nothing = ir.Constant(value.type, ir.Undefined)
        return self.b.shuffle_vector(value, nothing, ir.Constant(vec(i32, len(which)), list(which)))

    def registers(self, value):
        """Split a vector of integers or float32 into vectors that each fill one register."""
        lanes = 32 * ISA.lanes // getattr(value.type.element, "width", 32)
        if value.type.count <= lanes:
            return [value]
        return [self.lanes(value, range(at, at + lanes)) for at in range(0, value.type.count, lanes)]

    def joined(self, pieces):
        """Concatenate vectors: the inverse of ``registers``."""
        while len(pieces) > 1:
            lanes = ir.Constant(vec(i32, 2 * pieces[0].type.count), list(range(2 * pieces[0].type.count)))
            pieces = [self.b.shuffle_vector(*two, lanes) for two in zip(pieces[::2], pieces[1::2])]
        return pieces[0]

    def together(self, values):
        """Return the same values, and make the compiler compute all values before it uses any.

        This emits no instruction. It keeps several sums interleaved: without it, the compiler saves registers by
        finishing one sum after the other. On sets with 16 registers it also stops the compiler from moving loads to
        before this point, because values loaded early would spill the sums.
        """
        if ISA.vector_set not in _REGISTER:
            return values
        pieces = [self.registers(value) for value in values]
        flat = [piece for some in pieces for piece in some]
        kinds = [piece.type for piece in flat]
        places = ["=" + _REGISTER[ISA.vector_set]] * len(flat) + [str(i) for i in range(len(flat))]
        few = ISA.lanes == 8  # these sets have 16 registers
        one = len(flat) == 1  # a single output is not wrapped in a structure
        kind = ir.FunctionType(kinds[0] if one else ir.LiteralStructType(kinds), kinds)
        nothing = ir.InlineAsm(kind, "", ",".join(places + ["~{memory}"] * few), side_effect=few)
        result = self.b.call(nothing, flat)
        same = iter([result] if one else [self.b.extract_value(result, i) for i in range(len(flat))])
        return [self.joined([next(same) for _ in some]) for some in pieces]

    def lookup(self, table, index):
        """Replace every byte of ``index`` (16 x i32, bytes 0 to 15) by its entry of ``table`` (16 unsigned bytes)."""
        if ISA.vector_set in _LOOKUP:
            name, found = _LOOKUP[ISA.vector_set], []
            for piece in self.registers(index):
                places = self.b.bitcast(piece, vec(i8, 4 * ISA.lanes))
                entries = ir.Constant(places.type, list(table) * (ISA.lanes // 4))
                found.append(self.b.bitcast(self.call(name, places.type, entries, places), piece.type))
            return self.joined(found)
        entries = [self.fill(i32, entry * 0x01010101) for entry in table]
        for bit in range(4):  # this bit of the index selects one of each two neighbouring entries
            chosen = self.b.and_(self.b.lshr(index, self.fill(i32, bit)), self.fill(i32, 0x01010101))
            chosen = self.b.mul(chosen, self.fill(i32, 255))
            entries = [
                self.b.xor(even, self.b.and_(chosen, self.b.xor(even, odd)))
                for even, odd in zip(entries[::2], entries[1::2])
            ]
        return entries[0]

    def prefetch(self, address, nearest: int = 1) -> None:
        """Prefetch the cache line at ``address`` into cache level ``nearest`` (1: L1). Never faults."""
        pointer = self.b.inttoptr(address, i8.as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, i32, i32, i32])
        function = cgutils.get_or_insert_function(self.b.module, kind, "llvm.prefetch.p0")
        self.b.call(function, [pointer, ir.Constant(i32, 0), ir.Constant(i32, 4 - nearest), ir.Constant(i32, 1)])

    def prefetch_scattered(self, address, size, ahead, further, *, twice: bool) -> None:
        """Prefetch ``size`` bytes that lie ``ahead`` bytes after ``address``: the next part of a scattered stream.

        With ``twice``, and if the target prefetches streams twice, also prefetch the later part that lies ``further``
        bytes after ``address``.
        """
        for line in range(0, size, 64):
            place = self.at(address, line)
            if twice and len(TARGET.stream) > 1:
                self.prefetch(self.b.add(place, further), TARGET.stream[0][1])
            self.prefetch(self.b.add(place, ahead), TARGET.stream[-1][1])

    def prefetch_further(self, address) -> None:
        """Prefetch the cache lines of a stream at the target's distances after ``address``."""
        for ahead, nearest in TARGET.stream:
            self.prefetch(self.at(address, ahead), nearest)


def emitted_op(result, operands, emit):
    """Make an intrinsic of ``emit(emitter, *operands)``; ``result`` and ``operands`` are Numba types."""
    names = ", ".join(f"a{i}" for i in range(len(operands)))
    scope = {"emit": emit, "result": result, "operands": operands, "Emitter": Emitter}
    source = (
        f"def op(typingctx, {names}):\n"
        "    def codegen(context, builder, sig, args):\n"
        "        value = emit(Emitter(builder), *args)\n"
        "        return context.get_dummy_value() if value is None else value\n"
        "    return result(*operands), codegen\n"
    )
    exec(source, scope)  # Numba requires one named parameter for each operand
    return intrinsic(scope["op"])


def inner_loop(operand_count, emit):
    """Make an intrinsic of ``emit(emitter, *operands)`` without a result. The operands are int64."""
    return emitted_op(types.void, (types.int64,) * operand_count, emit)
