"""Random blocks of any format, for tests that must work for formats nobody has thought of yet."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.packed import BLOCK, ROWS, Packed
from pellucid.weights.pack import Matrix, pack, prepare
from pellucid.weights.quant import Fields, Format


@functools.cache
def half_bytes(form: Format) -> tuple[int, ...]:
    """Where a block keeps the bytes of its float16 numbers: those that change them when they change."""
    assert form.split
    before = form.split(np.zeros((1, 1, form.block_bytes), np.uint8))
    found = []
    for i in range(form.block_bytes):
        raw = np.zeros((1, 1, form.block_bytes), np.uint8)
        raw[0, 0, i] = 0x11
        sides = zip(before.sides, form.split(raw).sides)
        if any(a.dtype == np.float16 and (a != b).any() for a, b in sides):
            found.append(i)
    return tuple(found)


def random_blocks(form: Format, seed: int, rows: int, blocks: int, low: int = -10) -> NDArray[np.uint8]:
    """(rows, blocks, block_bytes): every bit random, but for scales between 2^low and 2^(low + 4), of either sign."""
    rng = np.random.default_rng(seed)
    if form.split is None:
        values = (rng.standard_normal((rows, blocks)) / 8).astype(np.float32)
        if form.packed.kind == "f16":
            return values.astype("<f2").view(np.uint8).reshape(rows, blocks, 2)
        raw = values.view(np.uint8).reshape(rows, blocks, 4)
        return np.ascontiguousarray(raw[..., 2:] if form.packed.kind == "bf16" else raw)
    raw = rng.integers(0, 256, (rows, blocks, form.block_bytes), np.uint8)
    where = half_bytes(form)
    exponent = rng.integers(15 + low, 19 + low, (rows, blocks, len(where) // 2))
    bits = exponent << 10 | rng.integers(0, 1024, exponent.shape) | rng.integers(0, 2, exponent.shape) << 15
    raw[..., where] = bits.astype("<u2").view(np.uint8).reshape(rows, blocks, len(where))
    return raw


def packed_matrix(form: Format, raw: NDArray[np.uint8], threads: int = 1) -> Matrix:
    """Stored blocks, (rows, blocks, block_bytes), packed."""
    packing = prepare(form, raw)
    pack([packing], threads)
    return packing.matrix


def unpack(packed: Packed, data: NDArray[np.uint8], rows: int, columns: int) -> Fields:
    """The packed layout read back as ``kernels/packed.py`` describes it, one value at a time in plain NumPy."""
    groups, blocks, units = -(-rows // ROWS), columns // BLOCK, columns // packed.unit
    plane_bytes = ROWS * BLOCK * packed.bits // 8
    values = np.zeros((groups * ROWS, columns), np.uint8)
    data = data.reshape(groups, -1)
    lanes = data[:, : blocks * plane_bytes].reshape(
        groups, blocks, -1, ROWS, 4
    )  # vectors, rows, bytes of a lane
    by_row = values.reshape(groups, ROWS, blocks, 8, 4)  # the block's columns as 8 vectors of 4
    for i in range(8):
        value = lanes[:, :, i] if packed.bits == 8 else lanes[:, :, i // 2] >> (4 * (i % 2)) & 15
        if packed.bits == 5:
            value = value | (lanes[:, :, 4] >> i & 1) << 4
        elif packed.bits == 6:
            value = value | (lanes[:, :, 4 + i // 4] >> 2 * (i % 4) & 3) << 4
        by_row[:, :, :, i] = value.transpose(0, 2, 1, 3)
    kinds = 2 if packed.minimum else 1
    small = units * packed.unit // packed.sub // units if packed.super_scales else 0
    at, per_unit = blocks * plane_bytes, kinds * (small * ROWS + 2 * ROWS)
    stored = data[:, at : at + units * per_unit].reshape(groups, units, per_unit)
    sides, start = [], 0
    for count, dtype in [(small, "i1" if packed.signed_scales else "u1")] * kinds + [(1, "<f2")] * kinds:
        size = count * ROWS * np.dtype(dtype).itemsize
        piece = np.ascontiguousarray(stored[:, :, start : start + size]).view(dtype)
        start += size
        if count:  # (groups, units, count, ROWS) to (rows, units * count)
            piece = piece.reshape(groups, units, count, ROWS).transpose(0, 3, 1, 2)
            sides.append(np.ascontiguousarray(piece).reshape(groups * ROWS, -1)[:rows])
    return Fields(values[:rows], tuple(sides))


def quantised(formats: dict[str, Format]) -> list[Format]:
    """Those that are not plain floats, by name."""
    return [form for _, form in sorted(formats.items()) if form.split is not None]
