"""Dot products of bytes, exact in int32, and of pairs of bfloat16 numbers, for each instruction set."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from pellucid.kernels.simd.emitter import ISA, LANES, TARGET, F32x16, emitted_op, f32, i8, i16, i32, vec

# Dot products of unsigned and signed bytes, exact in int32, for each instruction set.
#
# Each 32-bit lane of an operand holds four bytes. The sum of the four products of a lane is added to the same lane of
# an int32 total. Each instruction set uses different instructions:
#
#     avx512vnni, avxvnni   vpdpbusd, the whole operation in one instruction
#     neon                  usdot if the CPU has i8mm; else sdot, whose operands are both signed
#     avx2                  vpmaddubsw, which sums two products in 16 bits and saturates; then vpmaddwd adds two sums
#     portable              products of 16-bit numbers, which the compiler lowers
#
# The method depends on the largest unsigned byte. Bytes up to 127 can also be used as signed bytes. The products of
# small bytes are small, so several sums fit into 16 bits: with 4-bit values, 8 sums of two products are added before
# vpmaddwd widens them.
#
# Bytes above 127 are 8-bit weights with a zero point of 128. With the zero point subtracted they are signed bytes,
# which sdot takes directly. vpmaddubsw takes the weights' absolute values, and the other operand with the weights'
# signs applied; the other operand must not be -128.

MAX_WORD = 32767


def prefers_signed(max_byte: int) -> bool:
    """True if unsigned bytes up to ``max_byte`` are faster as signed bytes, with a zero point of 128 subtracted."""
    return max_byte > 127 and (ISA.vector_set == "avx2" or (ISA.vector_set == "neon" and not TARGET.has("i8mm")))


class Sum:
    """A sum of products in 16 lanes that starts at ``start`` (16 x i32).

    ``max_byte`` is the largest unsigned byte. With ``both_signed`` both operands are signed bytes and no byte of the
    second operand is -128 (see ``prefers_signed``). ``chains`` is the number of partial sums, which take products in
    turn to hide latency. Instruction sets that sum in 16 bits use one chain.
    """

    def __init__(self, e: Any, start: Any, max_byte: int, both_signed: bool = False, chains: int = 1) -> None:
        self.e, self.max_byte, self.both_signed = e, max_byte, both_signed
        zero = e.fill(i32, 0)
        # On avx2: 16-bit sums that are not widened yet, one vector for each register.
        self._words: list[Any] = []
        self._room = 0  # number of further sums of two products that fit into the words
        # The largest absolute value of a sum of two products.
        self._largest = 2 * 128 * 127 if both_signed else 2 * max_byte * 128
        self._in_words = ISA.vector_set == "avx2" and self._largest <= MAX_WORD
        chains = 1 if self._in_words else chains
        self._chains, self._turn = [start] + [zero] * (chains - 1), 0

    def add(self, unsigned: Any, signed: Any) -> None:
        """Add the products of four bytes in each lane. Both operands are 16 x i32."""
        if self._in_words:
            self._add_words(unsigned, signed)
            return
        at = self._turn % len(self._chains)
        self._chains[at] = _product(self.e, self._chains[at], unsigned, signed, self.max_byte, self.both_signed)
        self._turn += 1

    def total(self) -> Any:
        """Return the sum of all chains, 16 x i32."""
        self._widen()
        total = self._chains[0]
        for chain in self._chains[1:]:
            total = self.e.b.add(total, chain)
        return total

    def _add_words(self, weights: Any, values: Any) -> None:
        e, sums = self.e, []
        for w, x in zip(e.registers(weights), e.registers(values)):
            w, x = (e.b.bitcast(piece, vec(i8, 4 * ISA.lanes)) for piece in (w, x))
            if self.both_signed:
                w, x = _with_sign(e, w, w), _with_sign(e, x, w)
            sums.append(e.call("llvm.x86.avx2.pmadd.ub.sw", vec(i16, 2 * ISA.lanes), w, x))
        if self._words:
            self._words = [e.b.add(one, more) for one, more in zip(self._words, sums)]
            self._room -= 1
        else:
            self._words, self._room = sums, MAX_WORD // self._largest - 1
        if not self._room:  # widened immediately, because waiting words would take registers
            self._widen()

    def _widen(self) -> None:
        e = self.e
        if self._words:
            ones = e.fill(i16, 1, 2 * ISA.lanes)
            wide = [e.call("llvm.x86.avx2.pmadd.wd", vec(i32, ISA.lanes), words, ones) for words in self._words]
            self._chains[0] = e.b.add(self._chains[0], e.joined(wide))
        self._words, self._room = [], 0


def interleave(e: Any, sums: list[Sum]) -> None:
    """Keep sums with equal numbers of products interleaved, so that no sum is finished before the others."""
    same = iter(e.together([value for one in sums for value in one._words or one._chains]))
    for one in sums:
        if one._words:
            one._words = [next(same) for _ in one._words]
        else:
            one._chains = [next(same) for _ in one._chains]


def _product(e: Any, total: Any, unsigned: Any, signed: Any, max_byte: int, both_signed: bool) -> Any:
    """Return total[lane] + the four products of the lane; all are 16 x i32."""
    each = _single_instruction(max_byte, both_signed)
    if each is None:
        return _by_words(e, total, unsigned, signed)
    return e.joined([each(e, *parts) for parts in zip(*map(e.registers, (total, unsigned, signed)))])


def _single_instruction(max_byte: int, both_signed: bool) -> Any:
    """Return the function that computes a register's products in one instruction; None if the set needs several."""
    if ISA.vector_set == "avx512vnni":
        return lambda e, t, u, s: e.call("llvm.x86.avx512.vpdpbusd.512", t.type, t, u, s)
    if ISA.vector_set == "avxvnni":
        return _vpdpbusd
    if ISA.vector_set == "neon" and (both_signed or max_byte <= 127):
        return lambda e, t, u, s: _neon(e, "sdot", t, u, s)
    if ISA.vector_set == "neon" and TARGET.has("i8mm"):
        return lambda e, t, u, s: _neon(e, "usdot", t, u, s)
    return None


def _vpdpbusd(e: Any, total: Any, unsigned: Any, signed: Any) -> Any:
    if TARGET.has("avxvnni"):
        return e.call("llvm.x86.avx512.vpdpbusd.256", total.type, total, unsigned, signed)
    # A CPU with AVX-512 has this instruction in AVX-512's encoding. AVX-512 is disabled for the compiler here.
    kind = ir.FunctionType(total.type, [total.type] * 3)
    return e.b.call(ir.InlineAsm(kind, "vpdpbusd $3, $2, $0", "=x,0,x,x"), [total, unsigned, signed])


def _neon(e: Any, name: str, total: Any, first: Any, second: Any) -> Any:
    four = vec(i8, 16)
    operands = [e.b.bitcast(operand, four) for operand in (first, second)]
    return e.call(f"llvm.aarch64.neon.{name}.v4i32.v16i8", total.type, total, *operands)


def _by_words(e: Any, total: Any, unsigned: Any, signed: Any) -> Any:
    """Return total[lane] + the four products, from even and odd bytes that are widened to 16 bits.

    Most vector instruction sets multiply and add pairs of 16-bit words in one instruction.
    """
    lanes = 2 * LANES
    words = vec(i16, lanes)
    u, s = (e.b.bitcast(x, words) for x in (unsigned, signed))
    eight = e.fill(i16, 8, lanes)
    even = e.b.and_(u, e.fill(i16, 255, lanes)), e.b.ashr(e.b.shl(s, eight), eight)
    odd = e.b.lshr(u, eight), e.b.ashr(s, eight)
    for x, y in (even, odd):
        products = e.b.mul(*(e.b.sext(z, vec(i32, lanes)) for z in (x, y)))
        pairs = [e.lanes(products, range(first, lanes, 2)) for first in (0, 1)]
        total = e.b.add(total, e.b.add(*pairs))
    return total


def _with_sign(e: Any, x: Any, of: Any) -> Any:
    """Return bytes x, negated where ``of`` is negative and 0 where ``of`` is 0. With x = of: the absolute value."""
    return e.call("llvm.x86.avx2.psign.b", x.type, x, of)


# Products of pairs of bfloat16 numbers, summed in float32.
#
# A 32-bit lane holds two numbers, the first in its lower half. The product of the second numbers is added first:
#
#     total = fma(x1, y1, total)    then    total = fma(x0, y0, total)
#
# AVX-512 BF16 does this in one instruction (vdpbf16ps; Intel's manual specifies this order, and Zen 4 follows it).
# Other sets use two multiply-adds. Their bits are the same except for numbers below 1.2e-38, which the instruction
# treats as 0. The numbers of attention's rows (queries or weights), the *rows' operand*, are broadcast to all lanes.
# They are stored as bfloat16 pairs for the instruction, and as float32 otherwise, so that they need not be unpacked.

NATIVE = TARGET.isa.lanes == LANES and TARGET.has("avx512bf16")
ROW_BYTES = 2 if NATIVE else 4  # bytes of a number of the rows' operand
# The halves of a pair in the order of their products: both together (None), or the second (1), then the first (0).
HALVES = (None,) if NATIVE else (1, 0)


def spread(e: Any, row: Any, pair: Any, half: int | None) -> Any:
    """Broadcast a half (one of HALVES) of pair ``pair`` of the rows' operand, whose numbers are at address ``row``."""
    place = e.at(row, e.times(pair, 2 * ROW_BYTES))
    if half is None:
        return e.splat(e.load(place, i32))
    return e.splat(e.load(e.at(place, 4 * half), f32))


def half_of(e: Any, pairs: Any, half: int | None) -> Any:
    """Return a half (one of HALVES) of 16 lanes of pairs (16 x i32), in the form that ``add`` takes."""
    if half is None:
        return pairs
    bits = e.b.and_(pairs, e.fill(i32, -65536)) if half else e.b.shl(pairs, e.fill(i32, 16))
    return e.b.bitcast(bits, vec(f32))


def add(e: Any, total: Any, row: Any, numbers: Any) -> Any:
    """Add the products of a half from ``spread`` with 16 lanes from ``half_of`` to ``total``."""
    if NATIVE:
        kind = ir.FunctionType(total.type, [total.type, numbers.type, numbers.type])
        return e.b.call(ir.InlineAsm(kind, "vdpbf16ps $3, $2, $0", "=v,0,v,v"), [total, numbers, row])
    return e.fma(row, numbers, total)


def first_only(e: Any, pairs: Any) -> Any:
    """Return the pairs with their second numbers set to 0."""
    return e.b.and_(pairs, e.fill(i32, 65535))


def _to_bf16(e: Any, x: Any) -> Any:
    """Round 16 float32 to bfloat16, ties to even: the upper halves of the bits, as i16."""
    bits = e.b.bitcast(x, vec(i32))
    odd = e.b.and_(e.b.lshr(bits, e.fill(i32, 16)), e.fill(i32, 1))
    rounded = e.b.add(bits, e.b.add(odd, e.fill(i32, 0x7FFF)))
    return e.b.trunc(e.b.lshr(rounded, e.fill(i32, 16)), vec(i16))


def _keep(e: Any, address: Any, x: Any) -> None:
    if NATIVE:
        kind = ir.FunctionType(vec(i16), [x.type])
        e.store(e.b.call(ir.InlineAsm(kind, "vcvtneps2bf16 $1, $0", "=v,v"), [x]), address, 2)
    else:
        e.store(e.widen(_to_bf16(e, x), "bf16"), address)


# Round 16 numbers and store them as the rows' operand: (address, numbers).
store_row = emitted_op(types.void, (types.int64, F32x16), _keep)


def _store_apart(e: Any, address: Any, stride: Any, lanes: Any) -> None:
    for lane in range(lanes.type.count):
        value = e.b.extract_element(lanes, ir.Constant(i32, lane))
        e.store(value, e.at(address, e.b.mul(stride, e.const(lane))), 2)


# Store 16 consecutive numbers as 8 pairs, ``stride`` bytes apart: (address, stride, numbers).
store_pairs = emitted_op(
    types.void,
    (types.int64, types.int64, F32x16),
    lambda e, address, stride, x: _store_apart(e, address, stride, e.b.bitcast(_to_bf16(e, x), vec(i32, LANES // 2))),
)
# Store 16 numbers as the same half of 16 pairs, ``stride`` bytes apart: (address, stride, numbers).
store_halves = emitted_op(
    types.void,
    (types.int64, types.int64, F32x16),
    lambda e, address, stride, x: _store_apart(e, address, stride, _to_bf16(e, x)),
)
