"""Measures the machine's limits: the memory bandwidth of all threads, and their rate of 8-bit multiply-adds.

A step that is bound by memory cannot be faster than reading its weights once: ``roof.read`` reads a buffer of the same
size with the same threads. A step of many tokens cannot be faster than its products: ``roof.multiply`` computes
products, four for each lane, from registers. The unsigned factors have 4 bits, with which sets that sum in 16 bits are
fastest.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.core.definitions import kernel
from pellucid.kernels.core.isa import choose
from pellucid.kernels.core.record import Address, Record

STRIP = 512  # bytes that an iteration reads: eight vectors for eight independent sums
FACTOR = 0x0F010C04  # the four unsigned factors of every lane, at most MOST each
MOST = 15


class ReadRecord(Record):
    data: Address
    strips: int  # number of strips of STRIP bytes
    out: Address  # (threads, 16) float32: the sums, so that the compiler cannot remove loads


@kernel("roof.read", ReadRecord)
def build(simd: Any) -> Any:
    at, load, vload, splat = ReadRecord.at, simd.load_i64, simd.vload, simd.splat

    @simd.jit
    def body(record, step, thread, threads):
        data, strips = load(record + at.data), load(record + at.strips)
        a, b, c, d = splat(0.0), splat(0.0), splat(0.0), splat(0.0)
        e, f, g, h = splat(0.0), splat(0.0), splat(0.0), splat(0.0)
        for strip in range(strips * thread // threads, strips * (thread + 1) // threads):
            here = data + strip * STRIP
            a, b, c, d = a + vload(here), b + vload(here + 64), c + vload(here + 128), d + vload(here + 192)
            e, f, g, h = (
                e + vload(here + 256),
                f + vload(here + 320),
                g + vload(here + 384),
                h + vload(here + 448),
            )
        simd.vstore(load(record + at.out) + 64 * thread, a + b + c + d + e + f + g + h)

    return body


class MultiplyRecord(Record):
    rounds: int  # rounds of ``round_products`` multiply-adds for every thread
    factor: int  # FACTOR; a field, so that the compiler does not know its value
    out: Address  # (threads, 16) int32: the sums, so that the compiler cannot remove products


def chain_count() -> int:
    """The number of independent sums; they fit into the registers together with the unsigned factor."""
    return 3 * choose().sums // 2


def round_products() -> int:
    """Multiply-adds of a round: 16 lanes of four products in every chain, ``terms`` of the set times."""
    return chain_count() * 64 * choose().terms


def reference(rounds: int) -> NDArray[np.int32]:
    """Compute what every thread writes to its row of ``out``: (16,) int32 sums that wrap around."""
    count = chain_count()
    unsigned = np.frombuffer(np.int32(FACTOR).tobytes(), np.uint8).astype(np.int64)
    chains = np.array([_first(chain) for chain in range(count)], np.int32)
    for _ in range(rounds):
        for chain in range(count):
            total = chains[chain].astype(np.int64)
            for term in range(choose().terms):
                signed = chains[(chain + 1 + term) % count].view(np.int8).reshape(16, 4)
                total += signed.astype(np.int64) @ (unsigned ^ term)
            chains[chain] = total.astype(np.int32)
    return np.asarray(chains.sum(0), np.int32)


def _first(chain: int) -> list[int]:
    """The initial sums of a chain: 16 numbers that differ from those of other chains in every byte."""
    return [(1 + 16 * chain + lane) * 0x01030507 % 2**31 for lane in range(16)]


@kernel("roof.multiply", MultiplyRecord)
def build_multiply(simd: Any) -> Any:
    """8-bit multiply-adds; a chain's signed factors are other chains' sums, so they are neither loaded nor constant."""
    from llvmlite import ir
    from numba.core import cgutils
    from numba.core import types as t
    from numba.extending import intrinsic

    from pellucid.kernels.simd import int8_dot

    at, load, count = MultiplyRecord.at, simd.load_i64, chain_count()

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        e = simd.Emitter(builder)
        rounds, factor, out = args
        factor = e.splat(builder.trunc(factor, simd.i32))
        # Each term has another factor, so that chains have no products in common.
        factors = [builder.xor(factor, e.fill(simd.i32, 0x01010101 * term)) for term in range(simd.ISA.terms)]
        chains = [
            cgutils.alloca_once_value(builder, ir.Constant(simd.vec(simd.i32), _first(chain)))
            for chain in range(count)
        ]
        with cgutils.for_range(builder, rounds):
            for chain, place in enumerate(chains):
                total = int8_dot.Sum(e, builder.load(place), MOST)
                for term, each in enumerate(factors):
                    total.add(each, builder.load(chains[(chain + 1 + term) % count]))
                builder.store(total.total(), place)
        total = e.fill(simd.i32, 0)
        for place in chains:
            total = builder.add(total, builder.load(place))
        e.store(total, out)
        return context.get_dummy_value()

    @intrinsic
    def multiply(typingctx, rounds, factor, out):
        return t.void(t.int64, t.int64, t.int64), emit

    @simd.jit
    def body(record, step, thread, threads):
        multiply(load(record + at.rounds), load(record + at.factor), load(record + at.out) + 64 * thread)

    return body
