"""Sums of products of unsigned with signed bytes, exact in int32: how each instruction set makes them.

A lane of a vector holds four bytes of each operand, and gets the sum of their four products. What a set has for it:

    avx512vnni, avxvnni   vpdpbusd: all of it
    neon                  usdot, where there is i8mm; else sdot, whose operands are both signed
    avx2                  vpmaddubsw: sums of two products in 16 bits, which saturate; vpmaddwd adds two of these
    portable              what the compiler makes of products of 16-bit numbers

So it matters how large the unsigned bytes get. Up to 127 they are signed bytes as well. And small ones leave room in 16
bits: 8 sums of two products of 4-bit values add up there before vpmaddwd widens them.

Larger ones are 8-bit weights with a zero point of 128. Without the zero point they are signed bytes, which sdot takes
as they are. vpmaddubsw takes their absolute value, and the other operand with their sign; it must not be -128.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from pellucid.kernels.simd.types import ISA, LANES, TARGET, i8, i16, i32, vec

SIGNED = 0x80808080  # flips the highest bit of four bytes: takes 128 off, and gives a signed byte
LARGEST_WORD = 32767


def wants_signed(most: int) -> bool:
    """Whether unsigned bytes up to ``most`` had better come without a zero point of 128, as signed bytes."""
    return most > 127 and (ISA.name == "avx2" or (ISA.name == "neon" and not TARGET.has("i8mm")))


class Sum:
    """One sum for 16 lanes, from ``start`` on (16 x i32), to which products are added one after the other.

    ``most`` is the largest of the unsigned bytes. With ``both_signed`` these are signed bytes, and of the other operand
    none is -128 (see ``wants_signed``). ``chains`` is how many partial sums take turns, where that is faster.
    """

    def __init__(self, e: Any, start: Any, most: int, both_signed: bool = False, chains: int = 1) -> None:
        self.e, self.most, self.both_signed = e, most, both_signed
        zero = e.fill(i32, 0)
        self._words: list[Any] = []  # avx2: sums of two products that were not widened yet, one a register
        self._room = 0  # how many more fit
        # Of a sum of two products, either sign.
        self._largest = 2 * 128 * 127 if both_signed else 2 * most * 128
        self._in_words = ISA.name == "avx2" and self._largest <= LARGEST_WORD
        chains = 1 if self._in_words else chains
        self._chains, self._turn = [start] + [zero] * (chains - 1), 0

    def add(self, unsigned: Any, signed: Any) -> None:
        """Both are 16 x i32."""
        if self._in_words:
            self._add_words(unsigned, signed)
            return
        at = self._turn % len(self._chains)
        self._chains[at] = _product(self.e, self._chains[at], unsigned, signed, self.most, self.both_signed)
        self._turn += 1

    def total(self) -> Any:
        """16 x i32."""
        self._widen()
        total = self._chains[0]
        for chain in self._chains[1:]:
            total = self.e.b.add(total, chain)
        return total

    def _add_words(self, weights: Any, values: Any) -> None:
        e, sums = self.e, []
        for w, x in zip(e.pieces(weights), e.pieces(values)):
            w, x = (e.b.bitcast(piece, vec(i8, 4 * ISA.lanes)) for piece in (w, x))
            if self.both_signed:
                w, x = _with_sign(e, w, w), _with_sign(e, x, w)
            sums.append(e.call("llvm.x86.avx2.pmadd.ub.sw", vec(i16, 2 * ISA.lanes), w, x))
        if self._room:
            self._words = [e.b.add(one, more) for one, more in zip(self._words, sums)]
            self._room -= 1
        else:
            self._widen()
            self._words, self._room = sums, LARGEST_WORD // self._largest - 1

    def _widen(self) -> None:
        e = self.e
        if self._words:
            ones = e.fill(i16, 1, 2 * ISA.lanes)
            wide = [
                e.call("llvm.x86.avx2.pmadd.wd", vec(i32, ISA.lanes), words, ones) for words in self._words
            ]
            self._chains[0] = e.b.add(self._chains[0], e.joined(wide))
        self._words, self._room = [], 0


def take_turns(e: Any, sums: list[Sum]) -> None:
    """Sums that were added to alike go on together: none is finished before the others."""
    same = iter(e.together([value for one in sums for value in one._words or one._chains]))
    for one in sums:
        if one._words:
            one._words = [next(same) for _ in one._words]
        else:
            one._chains = [next(same) for _ in one._chains]


def _product(e: Any, total: Any, unsigned: Any, signed: Any, most: int, both_signed: bool) -> Any:
    """total[lane] + the four products; all are 16 x i32."""
    each = _one_of(most, both_signed)
    if each is None:
        return _by_words(e, total, unsigned, signed)
    return e.joined([each(e, *parts) for parts in zip(*map(e.pieces, (total, unsigned, signed)))])


def _one_of(most: int, both_signed: bool) -> Any:
    """The function that makes a register's products in one instruction; None if there is none."""
    if ISA.name == "avx512vnni":
        return lambda e, t, u, s: e.call("llvm.x86.avx512.vpdpbusd.512", t.type, t, u, s)
    if ISA.name == "avxvnni":
        return _vpdpbusd
    if ISA.name == "neon" and (both_signed or most <= 127):
        return lambda e, t, u, s: _neon(e, "sdot", t, u, s)
    if ISA.name == "neon" and TARGET.has("i8mm"):
        return lambda e, t, u, s: _neon(e, "usdot", t, u, s)
    return None


def _vpdpbusd(e: Any, total: Any, unsigned: Any, signed: Any) -> Any:
    if TARGET.has("avxvnni"):
        return e.call("llvm.x86.avx512.vpdpbusd.256", total.type, total, unsigned, signed)
    # A CPU with AVX-512 has it in AVX-512's encoding, which the compiler is not to use for anything else.
    kind = ir.FunctionType(total.type, [total.type] * 3)
    return e.b.call(ir.InlineAsm(kind, "vpdpbusd $3, $2, $0", "=x,0,x,x"), [total, unsigned, signed])


def _neon(e: Any, name: str, total: Any, first: Any, second: Any) -> Any:
    four = vec(i8, 16)
    operands = [e.b.bitcast(operand, four) for operand in (first, second)]
    return e.call(f"llvm.aarch64.neon.{name}.v4i32.v16i8", total.type, total, *operands)


def _by_words(e: Any, total: Any, unsigned: Any, signed: Any) -> Any:
    """Even and odd bytes as 16 bits: their products in pairs are one instruction wherever there are vectors."""
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
    """x, its negative where ``of`` is negative, 0 where it is 0: bytes. Of ``of`` itself this is the absolute value."""
    return e.call("llvm.x86.avx2.psign.b", x.type, x, of)
