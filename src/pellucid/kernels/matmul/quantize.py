"""Quantizes activations in blocks of 32 for the integer matrix products.

In: (T, D) float32. Out: (T, D/32) activation blocks, each contiguous:

    planes     32 x int8 each    the values: round(x / scale), ties to even, in one, two or three planes
    scale      float32           max |x| / 127; with 16 bits / (127 * 2^7), with 24 bits / (127 * 2^14)
    sum        float32           scale * (q0 + ... + q31), for formats with a minimum
    -sums      2 x int32         minus the sum of the 32 values, and of the second 16: for formats with a zero point
    -tops      2 x int32         with 24 bits only: -sums of the top plane; -sums is then without the top plane

    8 bits     high                               48 bytes
    16 bits    high, low                          80 bytes    128 * high + low: 14 bits and a sign, low from -64 to 63
    24 bits    top, middle, low, 8 bytes unused   128 bytes   2^14 * top + 128 * middle + low: 21 bits and a sign

Each plane costs an integer product for each weight and makes the rounding error 128 times smaller. With 24 bits the
error is about as small as in float32. More planes cost no time if memory bandwidth is the limit.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.core.definitions import kernel
from pellucid.kernels.core.record import Address, Count, Record

MAX_ACTIVATION_BITS = 24
MAX_INTEGER = {8: 127, 16: 127 << 7, 24: 127 << 14}
TOP = 1 << 14  # the unit of the top plane of 24 bits
MIN_LARGEST = 1e-30  # lower bound of a block's max |x|, so that MAX_INTEGER / max stays finite


class QuantizeRecord(Record):
    x: Address  # (T, D) float32
    width: int  # D, a multiple of 32
    out: Address  # (T, D/32) blocks
    factors: Address  # (D,) float32: factors of the columns, which multiply x first
    replicated: int  # 1: if there is one row, thread t reads row t of x and writes row t of out
    rows: Count


def block_bytes(activation_bits: int) -> int:
    """Bytes of a block of 32 values."""
    return block_dtype(activation_bits).itemsize


def block_dtype(activation_bits: int) -> np.dtype[Any]:
    """Return the NumPy dtype of a block."""
    fields: list[Any] = [("q", "i1", (activation_bits // 8, 32)), ("scale", "f4"), ("sum", "f4")]
    fields.append(("minus_sum", "i4", 2))
    if activation_bits == 24:
        fields += [("minus_top", "i4", 2), ("unused", "i4", 2)]
    return np.dtype(fields)


def reference(x: NDArray[np.floating[Any]], activation_bits: int) -> NDArray[Any]:
    """Quantize (T, D) to (T, D/32) blocks in NumPy. The scale is computed in float32, as in the kernel."""
    blocks = np.asarray(x, np.float32).reshape(len(x), -1, 32)
    max_integer = np.float32(MAX_INTEGER[activation_bits])
    largest = np.abs(blocks).max(-1)
    inverse = (max_integer / np.maximum(largest, np.float32(MIN_LARGEST))).astype(np.float32)
    values = np.rint(blocks * inverse[..., None]).astype(np.int32)
    out = np.zeros(blocks.shape[:2], block_dtype(activation_bits))
    out["scale"] = largest * np.float32(1 / max_integer)
    out["sum"] = out["scale"] * values.sum(-1).astype(np.float32)
    if activation_bits == 24:
        top = (values + TOP // 2) // TOP
        out["q"][..., 0, :], values = top, values - TOP * top
        out["minus_top"][..., 0], out["minus_top"][..., 1] = -top.sum(-1), -top[..., 16:].sum(-1)
    high = values if activation_bits == 8 else (values + 64) // 128
    planes = [high] if activation_bits == 8 else [high, values - 128 * high]
    for plane, value in enumerate(planes, activation_bits // 8 - len(planes)):
        out["q"][..., plane, :] = value
    out["minus_sum"][..., 0], out["minus_sum"][..., 1] = -values.sum(-1), -values[..., 16:].sum(-1)
    return out


def values(blocks: NDArray[Any]) -> NDArray[np.float64]:
    """Dequantize blocks (T, D/32) to (T, D)."""
    integers = integer_values(blocks)
    return np.asarray(integers * blocks["scale"].astype(np.float64)[..., None]).reshape(len(blocks), -1)


def integer_values(blocks: NDArray[Any]) -> NDArray[np.int64]:
    """Return the integers that the planes of blocks (T, D/32) stand for, (T, D/32, 32)."""
    integers = np.zeros((*blocks.shape, 32), np.int64)
    for plane in range(blocks["q"].shape[-2]):
        integers = 128 * integers + blocks["q"][..., plane, :]
    return integers


@functools.cache
def quantize_block(simd: Any, activation_bits: int, columns: str = "") -> Any:
    """Make the helper that quantizes one block. It takes (address of 32 float32, address of the block, factors).

    Other kernels use it to write activation blocks themselves. If ``columns`` is "smoothed", the values are first
    multiplied by 32 factors (an address), otherwise the factors are not read.
    """
    vload, splat, vmax, vabs, vmax_lane = simd.vload, simd.splat, simd.vmax, simd.vabs, simd.vmax_lane
    nearest, minus_sums, top_plane, below_top = simd.nearest, simd.minus_sums, simd.top_plane, simd.below_top
    high_plane, low_plane = simd.high_plane, simd.low_plane
    vstore_i8, store_f32, store_i64 = simd.vstore_i8, simd.store_f32, simd.store_i64
    min_largest, max_integer = np.float32(MIN_LARGEST), np.float32(MAX_INTEGER[activation_bits])
    scaled = np.float32(1 / MAX_INTEGER[activation_bits])
    tail, one_plane, three_planes = 4 * activation_bits, activation_bits == 8, activation_bits == 24
    smoothed = columns == "smoothed"

    @simd.jit
    def store(integers, out):
        """Store the planes of 16 values, without a top plane."""
        if one_plane:
            vstore_i8(out, integers)
        else:
            high = high_plane(integers)
            vstore_i8(out, high)
            vstore_i8(out + 32, low_plane(integers, high))

    @simd.jit
    def quantize(x, out, factors):
        first, second = vload(x), vload(x + 64)
        if smoothed:
            first, second = first * vload(factors), second * vload(factors + 64)
        largest = vmax_lane(vmax(vabs(first), vabs(second)))
        times, scale = splat(max_integer / max(largest, min_largest)), largest * scaled
        low, high = nearest(first * times), nearest(second * times)
        sums = minus_sums(low, high)
        store_f32(out + tail, scale)
        store_f32(out + tail + 4, scale * np.float32(-np.int32(sums)))
        if three_planes:
            top, next_top = top_plane(low), top_plane(high)
            vstore_i8(out, top)
            vstore_i8(out + 16, next_top)
            low, high, out = below_top(low, top), below_top(high, next_top), out + 32
            store_i64(out + tail - 32 + 16, minus_sums(top, next_top))
            store_i64(out + tail - 32 + 24, 0)
            sums = minus_sums(low, high)
        store(low, out)
        store(high, out + 16)
        store_i64(out + tail - 32 * three_planes + 8, sums)

    return quantize


def _emit_four(e: Any, x: Any, out: Any, factors: Any | None, size: int) -> None:
    """Emit the quantization of four blocks to 8 bits. ``x`` is the address of 128 float32, ``out`` of four blocks.

    The 128 float32 at ``factors``, unless it is None, multiply the values first. A block has ``size`` bytes. The blocks
    share the shuffles of their maxima and sums, and the division. The results have the same bits as the results of a
    block alone. Integers are summed as float32, which holds them exactly.
    """
    from llvmlite import ir

    from pellucid.kernels.simd.arithmetic import ROUNDING, ROUNDING_BITS, emit_maximum
    from pellucid.kernels.simd.emitter import LANES, f32, i8, i32, vec

    b, lanes = e.b, range(LANES)

    def mixed(one: Any, other: Any, order: list[int]) -> Any:
        """Return 16 lanes of two vectors; lanes 16 to 31 belong to the second."""
        return b.shuffle_vector(one, other, ir.Constant(vec(i32), order))

    def within_four(order: tuple[int, ...]) -> list[int]:
        return [lane // 4 * 4 + order[lane % 4] for lane in lanes]

    def by_block(four: list[Any], combine: Any) -> Any:
        """Combine the lanes of four vectors to four partial results each: lanes 4i to 4i+3 belong to vector i."""
        evens, odds = list(range(0, 32, 2)), list(range(1, 32, 2))
        while len(four) > 1:
            pairs = zip(four[::2], four[1::2])
            four = [combine(mixed(a, c, evens), mixed(a, c, odds)) for a, c in pairs]
        return four[0]

    def values(place: int) -> Any:
        loaded = e.load(e.at(x, place), vec(f32), 4)
        return loaded if factors is None else b.fmul(loaded, e.load(e.at(factors, place), vec(f32), 4))

    halves = [[values(128 * i + 64 * half) for half in (0, 1)] for i in range(4)]
    sizes = [[e.call("llvm.fabs.v16f32", one.type, one) for one in both] for both in halves]
    largest = by_block([emit_maximum(e, *both) for both in sizes], lambda one, other: emit_maximum(e, one, other))
    for order in ((1, 0, 3, 2), (2, 3, 0, 1)):
        largest = emit_maximum(e, largest, mixed(largest, largest, within_four(order)))
    times = b.fdiv(
        e.fill(f32, float(MAX_INTEGER[8])), emit_maximum(e, largest, e.fill(f32, float(np.float32(MIN_LARGEST))))
    )
    scale = b.fmul(largest, e.fill(f32, float(np.float32(1 / MAX_INTEGER[8]))))
    sums, seconds = [], []
    for i, both in enumerate(halves):
        time = mixed(times, times, [4 * i] * LANES)
        shifted = [b.fadd(b.fmul(one, time), e.fill(f32, ROUNDING)) for one in both]
        for half, one in enumerate(shifted):
            integers = b.sub(b.bitcast(one, vec(i32)), e.fill(i32, ROUNDING_BITS))
            e.store(b.trunc(integers, vec(i8)), e.at(out, size * i + 16 * half), 1)
        low, high = (b.fsub(one, e.fill(f32, ROUNDING)) for one in shifted)
        sums.append(b.fadd(low, high))
        seconds.append(high)

    def halved(partial: Any) -> Any:
        return b.fadd(partial, mixed(partial, partial, within_four((1, 0, 3, 2))))

    whole, second = halved(by_block(sums, b.fadd)), halved(by_block(seconds, b.fadd))
    # Lanes 4i to 4i+3: the sum of the block three times, then the sum of its second half.
    first, last = ([base + lane // 4 * 4 + 16 * (lane % 4 == 3) for lane in lanes] for base in (0, 2))
    both = b.fadd(mixed(whole, second, first), mixed(whole, second, last))
    minus = b.sub(b.bitcast(b.fsub(e.fill(f32, ROUNDING), both), vec(i32)), e.fill(i32, ROUNDING_BITS))
    # A block ends with its scale, scale times sum, and both sums negated as int32.
    tails = mixed(scale, b.fmul(scale, both), [lane + 16 * (lane % 4 > 0) for lane in lanes])
    tails = mixed(tails, b.bitcast(minus, vec(f32)), [lane + 16 * (lane % 4 > 1) for lane in lanes])
    for i in range(4):
        e.store(e.lanes(tails, range(4 * i, 4 * i + 4)), e.at(out, size * i + 32), 4)


@functools.cache
def quantize_blocks(simd: Any, activation_bits: int, columns: str = "") -> Any:
    """Make the helper that quantizes consecutive blocks of a row: (address of their float32, out, count, factors).

    ``columns`` is as in ``quantize_block``; ``factors`` is the address of the first column's factor.
    """
    block, size = quantize_block(simd, activation_bits, columns), block_bytes(activation_bits)

    @simd.jit
    def one_by_one(x, out, count, factors):
        for i in range(count):
            block(x + i * 128, out + i * size, factors + i * 128)

    if activation_bits != 8 or simd.ISA.lanes < simd.LANES:
        return one_by_one

    smoothed = columns == "smoothed"

    def emitted(e: Any, x: Any, out: Any, factors: Any) -> None:
        _emit_four(e, x, out, factors if smoothed else None, size)

    four = simd.inner_loop(3, emitted)

    @simd.jit
    def by_four(x, out, count, factors):
        whole = count // 4 * 4
        for i in range(0, whole, 4):
            four(x + i * 128, out + i * size, factors + i * 128)
        one_by_one(x + whole * 128, out + whole * size, count - whole, factors + whole * 128)

    return by_four


@kernel("quantize", QuantizeRecord, by_row=True)
def build(simd: Any, activation_bits: int, columns: str = "") -> Any:
    """Build the quantization. ``columns``: "smoothed" multiplies the columns by factors first."""
    at, load = QuantizeRecord.at, simd.load_i64
    quantize, size = quantize_blocks(simd, activation_bits, columns), block_bytes(activation_bits)

    @simd.jit
    def body(record, step, thread, threads):
        x, out, factors = load(record + at.x), load(record + at.out), load(record + at.factors)
        rows, blocks = load(step + load(record + at.rows)), load(record + at.width) // 32
        begin, end = simd.thread_range(rows * blocks, thread, threads)
        if rows == 1 and load(record + at.replicated) != 0:
            begin, end = thread * blocks, (thread + 1) * blocks
        while begin < end:
            column = begin % blocks
            count = min(end - begin, blocks - column)
            quantize(x + begin * 128, out + begin * size, count, factors + column * 128)
            begin += count

    return body
