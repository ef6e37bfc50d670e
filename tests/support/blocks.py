"""Random blocks of any quantization format, also of formats that are added later."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.kernels.matmul.layouts import BLOCK, ROWS, PackedLayout
from pellucid.weights.pack import Matrix, pack, prepare
from pellucid.weights.quant.format import BlockFields, Format


@functools.cache
def scale_bytes(form: Format) -> tuple[int, ...]:
    """Positions of the bytes in a block that hold its floating-point scales, found by changing each byte."""
    kinds = [count == 1 for count, _ in form.packed.scale_fields]

    def scales(raw: NDArray[np.uint8]) -> list[bytes]:
        return [side.tobytes() for side, own in zip(form.fields(raw).scale_fields, kinds) if own]

    nothing = np.zeros((1, 1, form.block_bytes), np.uint8)
    found = []
    for i in range(form.block_bytes):
        raw = nothing.copy()
        raw[0, 0, i] = 0x11
        if scales(raw) != scales(nothing):
            found.append(i)
    return tuple(found)


def random_blocks(form: Format, seed: int, rows: int, blocks: int, low: int = -10) -> NDArray[np.uint8]:
    """(rows, blocks, block_bytes): random bits, with scales between 2^low and 2^(low + 4) of either sign."""
    rng = np.random.default_rng(seed)
    if form.packed.is_float:
        values = (rng.standard_normal((rows, blocks)) / 8).astype(np.float32)
        if form.packed.kind == "f16":
            return values.astype("<f2").view(np.uint8).reshape(rows, blocks, 2)
        raw = values.view(np.uint8).reshape(rows, blocks, 4)
        return np.ascontiguousarray(raw[..., 2:] if form.packed.kind == "bf16" else raw)
    raw = rng.integers(0, 256, (rows, blocks, form.block_bytes), np.uint8)
    where = scale_bytes(form)
    if form.packed.scale == "e8m0":
        raw[..., where] = rng.integers(128 + low, 132 + low, (rows, blocks, len(where)))
        return raw
    exponent = rng.integers(15 + low, 19 + low, (rows, blocks, len(where) // 2))
    bits = exponent << 10 | rng.integers(0, 1024, exponent.shape) | rng.integers(0, 2, exponent.shape) << 15
    raw[..., where] = bits.astype("<u2").view(np.uint8).reshape(rows, blocks, len(where))
    return raw


def integers(packed: PackedLayout, fields: BlockFields) -> NDArray[np.int64]:
    """The integers that the scales multiply, (N, D)."""
    values = fields.values.astype(np.int64)
    if packed.table:
        values = np.array(packed.table)[values]
    return values - packed.zero_point


def scales_and_minima(
    packed: PackedLayout, fields: BlockFields
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Scales and minima of every sub-block, (N, D/sub), float32, rounded as in the kernels. Minima are signed."""
    scale_fields = list(fields.scale_fields)
    if packed.scale == "e8m0":
        scale_fields[-1] = np.ldexp(np.float32(1), scale_fields[-1].astype(np.int32) - 128)
    scale_fields = [side.astype(np.float32) for side in scale_fields]
    scale, minimum = (scale_fields[-2], scale_fields[-1]) if packed.minimum else (scale_fields[-1], None)
    if packed.super_scales:
        small: list[Any] = scale_fields[:2]
        if packed.joined_scales:
            small = [np.float32(fields.scale_fields[0] % 16), np.float32(fields.scale_fields[0] // 16)]
        per_unit = packed.unit // packed.sub
        scale = np.repeat(scale, per_unit, 1) * small[0]
        minimum = None if minimum is None else np.repeat(minimum, per_unit, 1) * small[1]
    return scale, None if minimum is None else packed.minimum_sign * minimum


def packed_matrix(form: Format, raw: NDArray[np.uint8], threads: int = 1) -> Matrix:
    """Pack stored blocks, (rows, blocks, block_bytes)."""
    flat = np.ascontiguousarray(raw).reshape(-1)

    def read(start: int, out: NDArray[np.uint8]) -> None:
        out[:] = flat[start : start + len(out)]

    packing = prepare(form, raw.shape, read)
    pack([packing], threads)
    return packing.matrix


def unpack(packed: PackedLayout, data: NDArray[np.uint8], rows: int, columns: int) -> BlockFields:
    """Read the packed layout of ``kernels/matmul/layouts.py`` back in plain NumPy."""
    groups, blocks, units = -(-rows // ROWS), columns // BLOCK, columns // packed.unit
    plane_bytes = ROWS * BLOCK * packed.bits // 8
    values = np.zeros((groups * ROWS, columns), np.uint8)
    data = data.reshape(groups, -1)
    # vectors, rows, bytes of a lane
    lanes = data[:, : blocks * plane_bytes].reshape(groups, blocks, -1, ROWS, 4)
    by_row = values.reshape(groups, ROWS, blocks, 8, 4)  # the block's columns as 8 vectors of 4
    for i in range(8):
        value: NDArray[Any]
        if packed.bits == 8:
            value = lanes[:, :, i]
        elif packed.bits >= 4:
            value = lanes[:, :, i // 2] >> (4 * (i % 2)) & 15
        else:
            value = lanes[:, :, i // 4] >> (2 * (i % 4)) & 3
        if packed.bits == 3:
            value = value | (lanes[:, :, 2] >> i & 1) << 2
        elif packed.bits == 5:
            value = value | (lanes[:, :, 4] >> i & 1) << 4
        elif packed.bits == 6:
            value = value | (lanes[:, :, 4 + i // 4] >> 2 * (i % 4) & 3) << 4
        by_row[:, :, :, i] = value.transpose(0, 2, 1, 3)
    kinds = 2 if packed.minimum else 1
    small = packed.unit // packed.sub if packed.super_scales else 0
    layout = [(small, "i1" if packed.signed_scales else "u1")] * (1 if packed.joined_scales else kinds)
    layout += [(1, "u1" if packed.scale == "e8m0" else "<f2")] * kinds
    at, per_unit = blocks * plane_bytes, sum(ROWS * n * np.dtype(dtype).itemsize for n, dtype in layout)
    stored = data[:, at : at + units * per_unit].reshape(groups, units, per_unit)
    scale_fields, start = [], 0
    for count, dtype in layout:
        size = count * ROWS * np.dtype(dtype).itemsize
        piece = np.ascontiguousarray(stored[:, :, start : start + size]).view(dtype)
        start += size
        if count:  # (groups, units, count, ROWS) to (rows, units * count)
            piece = piece.reshape(groups, units, count, ROWS).transpose(0, 3, 1, 2)
            scale_fields.append(np.ascontiguousarray(piece).reshape(groups * ROWS, -1)[:rows])
    return BlockFields(values[:rows], tuple(scale_fields))


def quantised(formats: dict[str, Format]) -> list[Format]:
    """The quantized formats, sorted by name."""
    return [form for _, form in sorted(formats.items()) if not form.packed.is_float]
