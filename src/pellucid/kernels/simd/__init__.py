"""Vectors and memory for kernels. With ``simd/int8_dot.py`` the only file that knows instructions.

Kernels are Python functions in Numba's dialect that work on addresses (int64) and on vectors of 16 float32 or
int32 lanes (float64 where a distribution is made of logits). Sixteen lanes everywhere, whatever the hardware's
width: LLVM splits them where it must, so the order of every sum is the same on every machine, and on machines with
a fused multiply-add so are the bits.

Two levels. Most kernels use the functions below as they are (``vload``, ``fma``, ``vsum`` ...). Inner loops
that must be unrolled by a number known when they are made (a tile of 8 tokens, say) are emitted whole through
``Emitter``, inside one ``@intrinsic``.

Importing this module imports Numba; only a kernel that is about to be compiled does so.
"""

from __future__ import annotations

import operator
import platform
import sys

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel.models import PrimitiveModel
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, register_model

from pellucid.kernels.core import compiler

LANES = 16
TARGET, jit = compiler.TARGET, compiler.jit
ISA = TARGET.isa

i8, i16, i32, i64 = (ir.IntType(n) for n in (8, 16, 32, 64))
f16, f32, f64 = ir.HalfType(), ir.FloatType(), ir.DoubleType()
KERNEL_SIGNATURE = types.void(types.int64, types.int64, types.int64, types.int64)


def vec(element, lanes=LANES):
    return ir.VectorType(element, lanes)


class VectorType(types.Type):
    """A vector register of ``LANES`` elements."""

    def __init__(self, element: str) -> None:
        self.element = element
        super().__init__(f"{element}x{LANES}")


F32x16, I32x16, F64x16 = VectorType("f32"), VectorType("i32"), VectorType("f64")


@register_model(VectorType)
class VectorModel(PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, vec({"f32": f32, "i32": i32, "f64": f64}[fe_type.element]))


# The registers that hold a vector, as inline assembly calls them.
_REGISTER = {"avx512vnni": "v", "avxvnni": "x", "avx2": "x", "neon": "w"}
# (table, places) to the entries, a register at a time.
_LOOKUP = {
    "avx512vnni": "llvm.x86.avx512.pshuf.b.512",
    "avxvnni": "llvm.x86.avx2.pshuf.b",
    "avx2": "llvm.x86.avx2.pshuf.b",
    "neon": "llvm.aarch64.neon.tbl1.v16i8",
}


class Emitter:
    """Emits the few instructions that kernels are made of. Addresses are i64 values."""

    def __init__(self, builder) -> None:
        self.b = builder

    def const(self, n: int):
        return ir.Constant(i64, n)

    def at(self, address, offset):
        """address + offset, where offset may be a Python integer."""
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
        return self.b.shuffle_vector(
            one, ir.Constant(kind, ir.Undefined), ir.Constant(vec(i32, lanes), [0] * lanes)
        )

    def fill(self, kind, value, lanes: int = LANES):
        return ir.Constant(vec(kind, lanes), [value] * lanes)

    def call(self, name: str, result, *args):
        kind = ir.FunctionType(result, [a.type for a in args])
        return self.b.call(cgutils.get_or_insert_function(self.b.module, kind, name), args)

    def fma(self, x, y, z):
        """x * y + z, rounded once."""
        return self.call("llvm.fma.v16f32", x.type, x, y, z)

    def widen(self, value, kind: str):
        """Stored floats ("f16", "bf16" as i16, "f32") to float32 lanes."""
        if kind == "f16":
            return self.b.fpext(value, vec(f32))
        if kind == "bf16":
            wide = self.b.shl(self.b.zext(value, vec(i32)), self.fill(i32, 16))
            return self.b.bitcast(wide, vec(f32))
        return value

    def lanes(self, value, which):
        """Some lanes of a vector as a vector of their own."""
        nothing = ir.Constant(value.type, ir.Undefined)
        return self.b.shuffle_vector(value, nothing, ir.Constant(vec(i32, len(which)), list(which)))

    def pieces(self, value):
        """A vector of integers as vectors that fill a register."""
        lanes = 32 * ISA.lanes // value.type.element.width
        if value.type.count <= lanes:
            return [value]
        return [self.lanes(value, range(at, at + lanes)) for at in range(0, value.type.count, lanes)]

    def joined(self, pieces):
        """Vectors side by side as one: what ``pieces`` took apart."""
        while len(pieces) > 1:
            lanes = ir.Constant(vec(i32, 2 * pieces[0].type.count), list(range(2 * pieces[0].type.count)))
            pieces = [self.b.shuffle_vector(*two, lanes) for two in zip(pieces[::2], pieces[1::2])]
        return pieces[0]

    def together(self, values):
        """The same values, none of which is used before all are there: they are not finished one after the other.

        It is no instruction. The compiler, to save registers, would undo the order in which sums take turns. Where
        registers are few, loads are not moved across it either: what is loaded ahead would push the sums out of them.
        """
        if ISA.name not in _REGISTER:
            return values
        pieces = [self.pieces(value) for value in values]
        flat = [piece for some in pieces for piece in some]
        kinds = [piece.type for piece in flat]
        places = ["=" + _REGISTER[ISA.name]] * len(flat) + [str(i) for i in range(len(flat))]
        few = ISA.lanes == 8  # and 16 registers
        kind = ir.FunctionType(ir.LiteralStructType(kinds), kinds)
        nothing = ir.InlineAsm(kind, "", ",".join(places + ["~{memory}"] * few), side_effect=few)
        result = self.b.call(nothing, flat)
        same = iter([self.b.extract_value(result, i) for i in range(len(flat))])
        return [self.joined([next(same) for _ in some]) for some in pieces]

    def lookup(self, table, index):
        """Every byte of ``index`` (16 x i32), 0 to 15, replaced by that entry of ``table``: 16 unsigned bytes."""
        if ISA.name in _LOOKUP:
            name, found = _LOOKUP[ISA.name], []
            for piece in self.pieces(index):
                places = self.b.bitcast(piece, vec(i8, 4 * ISA.lanes))
                entries = ir.Constant(places.type, list(table) * (ISA.lanes // 4))
                found.append(self.b.bitcast(self.call(name, places.type, entries, places), piece.type))
            return self.joined(found)
        entries = [self.fill(i32, entry * 0x01010101) for entry in table]
        for bit in range(4):  # of each two neighbours the one that this bit of the index tells
            chosen = self.b.and_(self.b.lshr(index, self.fill(i32, bit)), self.fill(i32, 0x01010101))
            chosen = self.b.mul(chosen, self.fill(i32, 255))
            entries = [
                self.b.xor(even, self.b.and_(chosen, self.b.xor(even, odd)))
                for even, odd in zip(entries[::2], entries[1::2])
            ]
        return entries[0]

    def prefetch(self, address, nearest: int = 1) -> None:
        """Ask for the cache line at ``address``, into a cache as near as this number says; never faults."""
        pointer = self.b.inttoptr(address, i8.as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, i32, i32, i32])
        function = cgutils.get_or_insert_function(self.b.module, kind, "llvm.prefetch.p0")
        self.b.call(
            function, [pointer, ir.Constant(i32, 0), ir.Constant(i32, 4 - nearest), ir.Constant(i32, 1)]
        )

    def prefetch_stream(self, address) -> None:
        """Ask for a line of something long that is read once, front to back."""
        self.prefetch(address, TARGET.stream[-1][1])

    def prefetch_further(self, address) -> None:
        """Ask for what comes some time after the line at ``address`` in such a stream."""
        for ahead, nearest in TARGET.stream:
            self.prefetch(self.at(address, ahead), nearest)


STORED = {"f32": f32, "f16": f16, "bf16": i16}


def _void(*kinds):
    return types.void(*kinds)


def _scalar_load(stored, result, convert):
    @intrinsic
    def load(typingctx, address):
        def codegen(context, builder, sig, args):
            return convert(builder, Emitter(builder).load(args[0], stored, 1))

        return result(types.int64), codegen

    return load


load_i64 = _scalar_load(i64, types.int64, lambda b, v: v)
load_i32 = _scalar_load(i32, types.int64, lambda b, v: b.sext(v, i64))
load_u32 = _scalar_load(i32, types.uint32, lambda b, v: v)
load_u8 = _scalar_load(i8, types.int64, lambda b, v: b.zext(v, i64))
load_u16 = _scalar_load(i16, types.int64, lambda b, v: b.zext(v, i64))
load_f64 = _scalar_load(f64, types.float64, lambda b, v: v)
load_f32 = _scalar_load(f32, types.float32, lambda b, v: v)
load_f16 = _scalar_load(f16, types.float32, lambda b, v: b.fpext(v, f32))


def to_bf16(b, x):
    """16 float32 to the nearest bfloat16, ties to even: the upper halves of the bits."""

    def number(n):
        return ir.Constant(vec(i32), [n] * LANES)

    bits = b.bitcast(x, vec(i32))
    odd = b.and_(b.lshr(bits, number(16)), number(1))
    return b.trunc(b.lshr(b.add(bits, b.add(odd, number(0x7FFF))), number(16)), vec(i16))


def _scalar_store(kind, convert):
    @intrinsic
    def store(typingctx, address, value):
        def codegen(context, builder, sig, args):
            Emitter(builder).store(convert(builder, args[1]), args[0], 1)
            return context.get_dummy_value()

        return _void(types.int64, kind), codegen

    return store


store_f32 = _scalar_store(types.float32, lambda b, v: v)
store_f16 = _scalar_store(types.float32, lambda b, v: b.fptrunc(v, f16))
store_f64 = _scalar_store(types.float64, lambda b, v: v)
store_i64 = _scalar_store(types.int64, lambda b, v: v)
store_u32 = _scalar_store(types.uint32, lambda b, v: v)
store_i32 = _scalar_store(types.int64, lambda b, v: b.trunc(v, i32))
store_u8 = _scalar_store(types.int64, lambda b, v: b.trunc(v, i8))


def vector_op(result, operands, emit):
    """An intrinsic over vectors (and scalars) of the given types."""
    names = ", ".join(f"a{i}" for i in range(len(operands)))
    scope = {"emit": emit, "result": result, "operands": operands, "Emitter": Emitter}
    source = (
        f"def op(typingctx, {names}):\n"
        "    def codegen(context, builder, sig, args):\n"
        "        value = emit(Emitter(builder), *args)\n"
        "        return context.get_dummy_value() if value is None else value\n"
        "    return result(*operands), codegen\n"
    )
    exec(source, scope)  # Numba wants as many named parameters as there are operands
    return intrinsic(scope["op"])


def _vload(stored: str):
    return vector_op(F32x16, (types.int64,), lambda e, a: e.widen(e.load(a, vec(STORED[stored]), 2), stored))


vload, vload_f16 = _vload("f32"), _vload("f16")
vstore = vector_op(types.void, (types.int64, F32x16), lambda e, a, v: e.store(v, a))
vstore_f16 = vector_op(
    types.void, (types.int64, F32x16), lambda e, a, v: e.store(e.b.fptrunc(v, vec(f16)), a, 2)
)
vstore_i8 = vector_op(types.void, (types.int64, I32x16), lambda e, a, v: e.store(e.b.trunc(v, vec(i8)), a, 1))
splat = vector_op(F32x16, (types.float32,), lambda e, x: e.splat(x))
fma = vector_op(F32x16, (F32x16, F32x16, F32x16), lambda e, x, y, z: e.fma(x, y, z))


def _maximum(e, x, y):
    """One instruction: y where either is not a number. What IEEE 754 wants of a maximum takes three."""
    return e.b.select(e.b.fcmp_ordered(">", x, y), x, y)


vmax = vector_op(F32x16, (F32x16, F32x16), _maximum)
vmin = vector_op(F32x16, (F32x16, F32x16), lambda e, x, y: e.b.select(e.b.fcmp_ordered("<", x, y), x, y))
vabs = vector_op(F32x16, (F32x16,), lambda e, x: e.call("llvm.fabs.v16f32", x.type, x))
ROUNDING = 12582912.0  # 1.5 * 2**23: a float32 this large has no places behind the point, its low bits count
ROUNDING_BITS = 0x4B400000

nearest = vector_op(  # to the nearest integer, ties to even, for |x| < 2**22; two instructions where others take three
    I32x16,
    (F32x16,),
    lambda e, x: e.b.sub(
        e.b.bitcast(e.b.fadd(x, e.fill(f32, ROUNDING)), vec(i32)), e.fill(i32, ROUNDING_BITS)
    ),
)
times_power_of_two = vector_op(  # x * 2**n by adding to the exponent; x and the result must be normal numbers
    F32x16,
    (F32x16, I32x16),
    lambda e, x, n: e.b.bitcast(e.b.add(e.b.bitcast(x, vec(i32)), e.b.shl(n, e.fill(i32, 23))), vec(f32)),
)
bits = vector_op(I32x16, (F32x16,), lambda e, x: e.b.bitcast(x, vec(i32)))
high_plane = vector_op(  # of a whole number w: (w + 64) // 128, so that w - 128 * high is -64 to 63
    I32x16, (I32x16,), lambda e, w: e.b.ashr(e.b.add(w, e.fill(i32, 64)), e.fill(i32, 7))
)
low_plane = vector_op(  # what is left
    I32x16, (I32x16, I32x16), lambda e, w, high: e.b.sub(w, e.b.shl(high, e.fill(i32, 7)))
)


def _guess_reciprocal(e, x):
    """Near 1 / x within an eighth: the exponent negated, by arithmetic on the bits."""
    return e.b.bitcast(e.b.sub(e.fill(i32, 0x7EF127EA), e.b.bitcast(x, vec(i32))), vec(f32))


guess_reciprocal = vector_op(F32x16, (F32x16,), _guess_reciprocal)


def _minus_sums(e, first, second):
    """Minus the sum of 32 integers, and minus the sum of the second 16, as the halves of an i64."""
    half = LANES // 2
    nothing, both = ir.Constant(first.type, ir.Undefined), e.b.add(first, second)

    def folded(x):
        low, high = (ir.Constant(vec(i32, half), list(range(at, at + half))) for at in (0, half))
        return e.b.add(e.b.shuffle_vector(x, nothing, low), e.b.shuffle_vector(x, nothing, high))

    joined = ir.Constant(vec(i32), list(range(LANES)))
    sums = e.b.shuffle_vector(folded(both), folded(second), joined)
    step = half // 2
    while step:
        other = ir.Constant(vec(i32), [lane ^ step for lane in range(LANES)])
        sums = e.b.add(sums, e.b.shuffle_vector(sums, nothing, other))
        step //= 2
    sums = e.b.neg(sums)
    pair = ir.Constant(vec(i32, 2), [0, half])
    return e.b.bitcast(e.b.shuffle_vector(sums, nothing, pair), i64)


minus_sums = vector_op(types.int64, (I32x16, I32x16), _minus_sums)


def _keep(e, x, first, count, other):
    """Lanes first <= lane < count of x, ``other`` elsewhere."""
    lane = ir.Constant(vec(i64), list(range(LANES)))
    inside = e.b.and_(e.b.icmp_signed(">=", lane, e.splat(first)), e.b.icmp_signed("<", lane, e.splat(count)))
    return e.b.select(inside, x, e.splat(other))


keep = vector_op(F32x16, (F32x16, types.int64, types.int64, types.float32), _keep)
select_below = vector_op(  # where x < limit: a, else b
    F32x16,
    (F32x16, F32x16, F32x16, F32x16),
    lambda e, x, limit, a, b: e.b.select(e.b.fcmp_ordered("<", x, limit), a, b),
)


chosen = vector_op(  # x in the lanes whose bit is set, the lowest first, y in the others
    F32x16,
    (types.int64, F32x16, F32x16),
    lambda e, bits, x, y: e.b.select(e.b.bitcast(e.b.trunc(bits, i16), vec(ir.IntType(1))), x, y),
)


def _lanes_of_two(order):
    """Lanes of two vectors side by side, by their numbers from 0 to 31."""
    return vector_op(
        F32x16, (F32x16, F32x16), lambda e, x, y: e.b.shuffle_vector(x, y, ir.Constant(vec(i32), order))
    )


lane0 = vector_op(types.float32, (F32x16,), lambda e, x: e.b.extract_element(x, ir.Constant(i32, 0)))
evens = _lanes_of_two(list(range(0, 32, 2)))
odds = _lanes_of_two(list(range(1, 32, 2)))
zipped_low = _lanes_of_two([lane // 2 + 16 * (lane % 2) for lane in range(16)])  # evens and odds, put back
zipped_high = _lanes_of_two([8 + lane // 2 + 16 * (lane % 2) for lane in range(16)])


def _reduce(combine):
    def emit(e, x):
        half = LANES // 2
        while half:
            order = ir.Constant(vec(i32), [(lane + half) % LANES for lane in range(LANES)])
            x = combine(e, x, e.b.shuffle_vector(x, ir.Constant(x.type, ir.Undefined), order))
            half //= 2
        return e.b.extract_element(x, ir.Constant(i32, 0))

    return emit


widen64 = vector_op(F64x16, (F32x16,), lambda e, x: e.b.fpext(x, vec(f64)))
splat64 = vector_op(F64x16, (types.float64,), lambda e, x: e.splat(x))
vstore64 = vector_op(types.void, (types.int64, F64x16), lambda e, a, v: e.store(v, a, 8))
fma64 = vector_op(
    F64x16, (F64x16, F64x16, F64x16), lambda e, x, y, z: e.call("llvm.fma.v16f64", x.type, x, y, z)
)
times_power_of_two64 = vector_op(  # x * 2**n, where ``shifted`` is n + ROUNDING64; likewise
    F64x16,
    (F64x16, F64x16),
    lambda e, x, shifted: e.b.bitcast(
        e.b.add(
            e.b.bitcast(x, vec(i64)),
            e.b.shl(e.b.bitcast(shifted, vec(i64)), ir.Constant(vec(i64), [52] * LANES)),
        ),
        vec(f64),
    ),
)
select_below64 = vector_op(
    F64x16,
    (F64x16, F64x16, F64x16, F64x16),
    lambda e, x, limit, a, b: e.b.select(e.b.fcmp_ordered("<", x, limit), a, b),
)
ROUNDING64 = 6755399441055744.0  # 1.5 * 2**52

# Sums over lanes always pair lane i with i+8, then i+4, i+2, i+1.
vsum = vector_op(types.float32, (F32x16,), _reduce(lambda e, x, y: e.b.fadd(x, y)))
vsum64 = vector_op(types.float64, (F64x16,), _reduce(lambda e, x, y: e.b.fadd(x, y)))
vmax_lane = vector_op(types.float32, (F32x16,), _reduce(_maximum))

for _operator, _float, _int in (
    (operator.add, "fadd", "add"),
    (operator.sub, "fsub", "sub"),
    (operator.mul, "fmul", "mul"),
    (operator.truediv, "fdiv", None),
):

    def _register(op, float_name, int_name):
        @infer_global(op)
        class VectorArithmetic(AbstractTemplate):
            def generic(self, args, kws):
                if len(args) == 2 and isinstance(args[0], VectorType) and args[0] == args[1]:
                    return signature(args[0], *args)
                return None

        @lower_builtin(op, F32x16, F32x16)
        @lower_builtin(op, F64x16, F64x16)
        def lower_float(context, builder, sig, args):
            return getattr(builder, float_name)(*args)

        if int_name:

            @lower_builtin(op, I32x16, I32x16)
            def lower_int(context, builder, sig, args):
                return getattr(builder, int_name)(*args)

    _register(_operator, _float, _int)


@jit
def vexp(x):
    """e**x for 16 lanes: Cody and Waite's reduction, then a polynomial of degree 6. Relative error 2e-7.

    The one exponential of every path, so that softmax and activations agree bit for bit everywhere. Zero
    below -87.3, where the result would no longer be a normal number; infinity is not reached: 88.3 is the cap.
    """
    clamped = vmin(vmax(x, splat(-87.3)), splat(88.3))
    shifted = fma(clamped, splat(1.44269504), splat(ROUNDING))
    n = shifted - splat(ROUNDING)
    r = fma(n, splat(-0.693359375), clamped)
    r = fma(n, splat(2.12194440e-4), r)
    p = fma(r, splat(1.9875691500e-4), splat(1.3981999507e-3))
    p = fma(p, r, splat(8.3334519073e-3))
    p = fma(p, r, splat(4.1665795894e-2))
    p = fma(p, r, splat(1.6666665459e-1))
    p = fma(p, r, splat(5.0000001201e-1))
    p = fma(p, r * r, r + splat(1.0))
    return select_below(x, splat(-87.3), splat(0.0), times_power_of_two(p, bits(shifted)))


@jit
def vexp64(x):
    """e**x for 16 float64 lanes, -1400 <= x <= 0; 0 below -708. As ``vexp``, with 1 + r + r**2 times a polynomial of
    degree 8, exp interpolated at Chebyshev's nodes. Relative error 2e-15.
    """
    shifted = fma64(x, splat64(1.4426950408889634), splat64(ROUNDING64))
    n = shifted - splat64(ROUNDING64)
    r = fma64(n, splat64(-6.93145751953125e-1), x)
    r = fma64(n, splat64(-1.42860682030941723212e-6), r)
    p = fma64(splat64(2.761380686153829e-07), r, splat64(2.762511557828763e-06))
    p = fma64(p, r, splat64(2.4801536388690766e-05))
    p = fma64(p, r, splat64(0.00019841208732536384))
    p = fma64(p, r, splat64(0.0013888888905881542))
    p = fma64(p, r, splat64(0.008333333353729397))
    p = fma64(p, r, splat64(0.04166666666665136))
    p = fma64(p, r, splat64(0.1666666666664829))
    p = fma64(p, r, splat64(0.5))
    p = fma64(p, r, splat64(1.0))
    p = fma64(p, r, splat64(1.0))
    return select_below64(x, splat64(-708.0), splat64(0.0), times_power_of_two64(p, shifted))


@jit
def vreciprocal(x):
    """1 / x for 16 lanes of 1e-37 to 8e37, within 2 units of the last place: a guess, then Newton and Raphson thrice.

    A division keeps a pipeline busy for sixteen cycles, this for four; and it is the same on every machine.
    """
    y = guess_reciprocal(x)
    y = fma(fma(splat(0.0) - x, y, splat(1.0)), y, y)
    y = fma(fma(splat(0.0) - x, y, splat(1.0)), y, y)
    return fma(fma(splat(0.0) - x, y, splat(1.0)), y, y)


# A product of which the low 64 bits are wanted, for hashing: Numba's own lets LLVM take it that none are lost.
times = vector_op(types.int64, (types.int64, types.int64), lambda e, a, b: e.b.mul(a, b))
lowest_bit = vector_op(  # its number; of a word that is not 0
    types.int64, (types.int64,), lambda e, a: e.call("llvm.cttz.i64", i64, a, ir.Constant(ir.IntType(1), 1))
)
prefetch = vector_op(types.void, (types.int64,), lambda e, address: e.prefetch(address))


@intrinsic
def call_kernel(typingctx, function, record, step, thread, threads):
    """Call a compiled kernel by its address. Returns its status, 0 if all went well."""

    def codegen(context, builder, sig, args):
        pointer = i8.as_pointer()
        kind = ir.FunctionType(i32, [pointer, pointer, i64, i64, i64, i64])
        nothing = cgutils.alloca_once(builder, i64, size=4)
        where = builder.bitcast(nothing, pointer)
        function = builder.inttoptr(args[0], kind.as_pointer())
        return builder.sext(builder.call(function, [where, where, *args[1:]]), i64)

    return types.int64(*[types.int64] * 5), codegen


@intrinsic
def atomic_load(typingctx, address):
    def codegen(context, builder, sig, args):
        return builder.load_atomic(builder.inttoptr(args[0], i64.as_pointer()), "acquire", 8)

    return types.int64(types.int64), codegen


@intrinsic
def atomic_store(typingctx, address, value):
    def codegen(context, builder, sig, args):
        builder.store_atomic(args[1], builder.inttoptr(args[0], i64.as_pointer()), "release", 8)
        return context.get_dummy_value()

    return _void(types.int64, types.int64), codegen


@intrinsic
def atomic_add(typingctx, address, value):
    """Add to the 64 bits at ``address``; returns what was there. Sees what others wrote before they did the same."""

    def codegen(context, builder, sig, args):
        pointer = builder.inttoptr(args[0], i64.as_pointer())
        return builder.atomic_rmw("add", pointer, args[1], "acq_rel")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def relax(typingctx):
    """Tell the core that this is a spin loop."""

    def codegen(context, builder, sig, args):
        triple = str(builder.module.triple)
        if triple.startswith(("x86_64", "i686")):
            Emitter(builder).call("llvm.x86.sse2.pause", ir.VoidType())
        elif triple.startswith(("aarch64", "arm64")):
            builder.call(
                cgutils.get_or_insert_function(
                    builder.module, ir.FunctionType(ir.VoidType(), [i32]), "llvm.aarch64.hint"
                ),
                [ir.Constant(i32, 1)],
            )
        return context.get_dummy_value()

    return types.void(), codegen


# Linux lets a thread sleep until a word of memory changes: futex(2). Elsewhere a thread can only give up its core.
_FUTEX = (
    {"x86_64": 202, "AMD64": 202, "aarch64": 98}.get(platform.machine()) if sys.platform == "linux" else None
)
_WAIT_PRIVATE, _WAKE_PRIVATE = 128, 129


def _futex(builder, address, operation: int, value, timeout):
    kind = ir.FunctionType(i64, [i64], var_arg=True)
    function = cgutils.get_or_insert_function(builder.module, kind, "syscall")
    words = [ir.Constant(i64, _FUTEX), address, ir.Constant(i64, operation), value, timeout]
    builder.call(function, [*words, ir.Constant(i64, 0), ir.Constant(i64, 0)])


@intrinsic
def sleep_while(typingctx, address, value, nanoseconds):
    """Sleep while the 32-bit word at ``address`` is ``value``: until ``wake``, or so long; perhaps shorter."""

    def codegen(context, builder, sig, args):
        address, value, nanoseconds = args
        if _FUTEX is None:
            Emitter(builder).call("SwitchToThread" if sys.platform == "win32" else "sched_yield", i32)
        else:
            duration = cgutils.alloca_once(builder, i64, size=2)
            builder.store(ir.Constant(i64, 0), duration)
            builder.store(nanoseconds, builder.gep(duration, [ir.Constant(i64, 1)]))
            _futex(builder, address, _WAIT_PRIVATE, value, builder.ptrtoint(duration, i64))
        return context.get_dummy_value()

    return _void(types.int64, types.int64, types.int64), codegen


@intrinsic
def wake(typingctx, address):
    """Wake all threads that sleep on the word at ``address``."""

    def codegen(context, builder, sig, args):
        if _FUTEX is not None:
            _futex(builder, args[0], _WAKE_PRIVATE, ir.Constant(i64, 1 << 30), ir.Constant(i64, 0))
        return context.get_dummy_value()

    return _void(types.int64), codegen


@intrinsic
def yield_core(typingctx):
    """Let another thread have the core."""

    def codegen(context, builder, sig, args):
        Emitter(builder).call("SwitchToThread" if sys.platform == "win32" else "sched_yield", i32)
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def current_core(typingctx):
    """The number of the core that runs this, or -1 where the system does not tell."""

    def codegen(context, builder, sig, args):
        if sys.platform != "linux":
            return ir.Constant(i64, -1)
        return builder.sext(Emitter(builder).call("sched_getcpu", i32), i64)

    return types.int64(), codegen
