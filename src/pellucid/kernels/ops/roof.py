"""Measures the machine's limits: the memory bandwidth of all threads, and their rate of 8-bit multiply-adds.

A step that is limited by memory bandwidth cannot be faster than reading its weights once. ``roof.read`` measures this
time: it reads a buffer of the same size with the same threads. A step of many tokens cannot be faster than its
products. ``roof.multiply`` computes products of registers, four for each lane. The unsigned factors have 4 bits, the
fastest case for instruction sets that sum in 16 bits. ``roof.multiply_tiles`` does the same with tile registers, if the
CPU has them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.core.definitions import KernelKey, kernel
from pellucid.kernels.core.isa import choose, target
from pellucid.kernels.core.record import Address, Record

STRIP = 512  # bytes that an iteration reads: eight vectors for eight independent sums
FACTOR = 0x0F010C04  # the four unsigned factors of every lane, at most MAX_FACTOR each
MAX_FACTOR = 15
SIDES = 2  # tiles of each factor: four products of tiles in a round
TILE_PRODUCTS = 16 * 16 * 64


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
        for strip in range(*simd.thread_range(strips, thread, threads)):
            here = data + strip * STRIP
            a, b, c, d = a + vload(here), b + vload(here + 64), c + vload(here + 128), d + vload(here + 192)
            e, f = e + vload(here + 256), f + vload(here + 320)
            g, h = g + vload(here + 384), h + vload(here + 448)
        simd.vstore(load(record + at.out) + 64 * thread, a + b + c + d + e + f + g + h)

    return body


class MultiplyRecord(Record):
    rounds: int  # rounds of ``round_products`` multiply-adds for every thread
    factor: int  # FACTOR; a field, so that the compiler does not know its value
    out: Address  # (threads, 16) int32: the sums, so that the compiler cannot remove products


def chain_count() -> int:
    """Return the number of independent sums. They fit into the registers together with the unsigned factor.

    Sums of 16 bits need additional registers.
    """
    count = 3 * choose().sums // 2
    return count // 2 if choose().terms > 1 else count


def multiply_key() -> KernelKey:
    """Return the key of this machine's fastest multiply kernel. Tiles are used only if the CPU has tile registers."""
    return KernelKey("roof.multiply_tiles" if target().has("amx-int8") else "roof.multiply")


def round_products(key: KernelKey) -> int:
    """Return the number of multiply-adds of a round. Without tiles, each chain has ``terms`` x 16 x 4 of them."""
    if key.name == "roof.multiply_tiles":
        return SIDES * SIDES * TILE_PRODUCTS
    return chain_count() * 64 * choose().terms


def reference(rounds: int) -> NDArray[np.int32]:
    """Compute the row that every thread writes to ``out``: (16,) int32 sums that wrap around."""
    count = chain_count()
    unsigned = np.frombuffer(np.int32(FACTOR).tobytes(), np.uint8).astype(np.int64)
    chains = np.array([_first(chain) for chain in range(count)], np.int32)
    for _ in range(rounds):
        before = chains.copy()
        for chain in range(count):
            total = before[chain].astype(np.int64)
            for term in range(choose().terms):
                signed = before[(chain + 1 + term) % count].view(np.int8).reshape(16, 4)
                total += signed.astype(np.int64) @ (unsigned ^ term)
            chains[chain] = total.astype(np.int32)
    return np.asarray(chains.sum(0), np.int32)


def _first(chain: int) -> list[int]:
    """Return the initial sums of a chain: 16 numbers that differ from all other chains' numbers in every byte."""
    return [(1 + 16 * chain + lane) * 0x01030509 % 2**31 for lane in range(16)]


@kernel("roof.multiply", MultiplyRecord)
def build_multiply(simd: Any) -> Any:
    """Build 8-bit multiply-adds.

    The signed factors are the chains' sums at the start of a round. So they need no loads, and the compiler cannot
    treat them as constants.
    """
    from llvmlite import ir
    from numba.core import cgutils

    from pellucid.kernels.simd import dot

    at, load, count = MultiplyRecord.at, simd.load_i64, chain_count()

    def emit(e: Any, rounds: Any, factor: Any, out: Any) -> None:
        factor = e.splat(e.b.trunc(factor, simd.i32))
        # Each term has another factor, so that chains have no products in common.
        factors = [e.b.xor(factor, e.fill(simd.i32, 0x01010101 * term)) for term in range(simd.ISA.terms)]
        chains = [
            cgutils.alloca_once_value(e.b, ir.Constant(simd.vec(simd.i32), _first(chain))) for chain in range(count)
        ]
        with cgutils.for_range(e.b, rounds):
            before = [e.b.load(place) for place in chains]
            sums = [dot.Sum(e, value, MAX_FACTOR) for value in before]
            for term, each in enumerate(factors):
                for chain, one in enumerate(sums):
                    one.add(each, before[(chain + 1 + term) % count])
                dot.interleave(e, sums)
            for one, place in zip(sums, chains):
                e.b.store(one.total(), place)
        total = e.fill(simd.i32, 0)
        for place in chains:
            total = e.b.add(total, e.b.load(place))
        e.store(total, out)

    multiply = simd.inner_loop(3, emit)

    @simd.jit
    def body(record, step, thread, threads):
        multiply(load(record + at.rounds), load(record + at.factor), load(record + at.out) + 64 * thread)

    return body


def tiles_reference(rounds: int) -> NDArray[np.int32]:
    """Compute the row that every thread writes with tiles: (16,) int32 sums over all rows, which wrap around."""
    total = np.zeros(16, np.int64)
    for i in range(SIDES):
        values = np.frombuffer(np.int32(FACTOR ^ 0x01010101 * i).tobytes(), np.int8).astype(np.int64)
        for j in range(SIDES):
            weights = np.array(_first(j), np.int32).view(np.int8).reshape(16, 4)
            total += weights.astype(np.int64) @ values * 16 * 16 * rounds
    return (total & 0xFFFFFFFF).astype(np.uint32).view(np.int32)


@kernel("roof.multiply_tiles", MultiplyRecord)
def build_tiles(simd: Any) -> Any:
    """Build products of tiles: each of two A tiles times each of two B tiles, each pair with its own sum tile."""
    from llvmlite import ir
    from numba.core import cgutils

    from pellucid.kernels.simd import tiles

    at, load, size = MultiplyRecord.at, simd.load_i64, tiles.TILE_BYTES
    memory_of = simd.stack_memory(size + tiles.STATE_BYTES)
    rows, row = tiles.ROWS, tiles.ROW_BYTES

    def emit(e: Any, memory: Any, rounds: Any, factor: Any, out: Any) -> None:
        unit, stride = tiles.Tiles(e, e.at(memory, size)), e.const(row)
        unit.configure([(rows, row)] * tiles.COUNT)
        factor = e.splat(e.b.trunc(factor, simd.i32))
        for i in range(SIDES):
            sides = (e.b.xor(factor, e.fill(simd.i32, 0x01010101 * i)), ir.Constant(simd.vec(simd.i32), _first(i)))
            for side, values in enumerate(sides):
                for number in range(rows):
                    e.store(values, e.at(memory, row * number))
                unit.load(SIDES * side + i, memory, stride)
        sums = [(2 * SIDES + SIDES * i + j, i, SIDES + j) for i in range(SIDES) for j in range(SIDES)]
        for c, _, _ in sums:
            unit.zero(c)
        with cgutils.for_range(e.b, rounds):
            for c, a, b in sums:
                unit.multiply(c, a, b)
        total = e.fill(simd.i32, 0)
        for c, _, _ in sums:
            unit.store(c, memory, stride)
            for number in range(rows):
                total = e.b.add(total, e.load(e.at(memory, row * number), simd.vec(simd.i32)))
        unit.release()
        e.store(total, out)

    multiply = simd.inner_loop(4, emit)

    @simd.jit
    def body(record, step, thread, threads):
        out = load(record + at.out) + 64 * thread
        multiply(memory_of(), load(record + at.rounds), load(record + at.factor), out)

    return body
