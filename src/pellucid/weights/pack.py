"""Stored tensors into packed ones (and into plain float32), piece by piece on a few threads.

Packing loses nothing: it moves bits. ``decode`` is the plain definition of what the bits mean.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import UnsupportedModel
from pellucid.kernels.library import KernelKey, shared
from pellucid.kernels.pack import PackFloat, PackInt
from pellucid.kernels.packed import ROWS, Packed, round_up
from pellucid.runtime.memory import aligned
from pellucid.weights.checkpoint import Checkpoint, Tensor
from pellucid.weights.quant import Fields, Format, lookup

PIECE_VALUES = 1 << 20  # of a piece of work: small enough to share out, large enough not to wait on Python


@dataclass(frozen=True)
class Matrix:
    """A packed matrix of (rows, columns); ``data`` is uint8, aligned to a cache line."""

    packed: Packed
    rows: int
    columns: int
    data: NDArray[np.uint8]

    @property
    def address(self) -> int:
        """Where the first group of 16 rows begins."""
        return int(self.data.ctypes.data)

    @property
    def groups(self) -> int:
        """Groups of 16 rows; the last may be padded with zeros."""
        return round_up(self.rows, ROWS) // ROWS


def stored_blocks(checkpoint: Checkpoint, tensor: Tensor) -> tuple[Format, NDArray[np.uint8]]:
    """A tensor's format and its bytes as (rows, blocks, block_bytes); a vector is one row.

    Raises:
        UnsupportedModel: a format that is not implemented.
    """
    form = lookup(tensor.format, f"tensor {tensor.name}")
    rows = int(np.prod(tensor.shape[:-1], dtype=np.int64))
    raw = checkpoint.data(tensor.name)
    return form, raw.reshape(rows, tensor.shape[-1] // form.block, form.block_bytes)


def decode_blocks(form: Format, raw: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(rows, blocks, block_bytes) as float32 (rows, columns): what the format's definition says."""
    rows = len(raw)
    if form.split is None:
        flat = np.ascontiguousarray(raw).reshape(rows, -1)
        if form.packed.kind == "bf16":
            return (flat.view("<u2").astype(np.uint32) << 16).view(np.float32)
        return flat.view("<f4" if form.packed.kind == "f32" else "<f2").astype(np.float32)
    fields, packed = form.split(raw), form.packed
    sides = [side.astype(np.float32) for side in fields.sides]
    scale, minimum = (sides[-2], sides[-1]) if packed.minimum else (sides[-1], None)
    if packed.super_scales:
        per_unit = packed.unit // packed.sub
        scale = np.repeat(scale, per_unit, axis=1) * sides[0]
        if minimum is not None:
            minimum = np.repeat(minimum, per_unit, axis=1) * sides[1]
    values = (fields.values.astype(np.int16) - packed.zero_point).astype(np.float32)
    values *= np.repeat(scale, packed.sub, axis=1)
    if minimum is not None:
        values += np.repeat(packed.minimum_sign * minimum, packed.sub, axis=1)
    return values


def decode(checkpoint: Checkpoint, name: str) -> NDArray[np.float32]:
    """A tensor as float32, in its own shape."""
    tensor = checkpoint.tensors[name]
    form, raw = stored_blocks(checkpoint, tensor)
    return decode_blocks(form, raw).reshape(tensor.shape)


@dataclass(frozen=True)
class Packing:
    """A matrix to be packed, and the pieces of work that do so, in any order and on any thread."""

    matrix: Matrix
    pieces: list[Callable[[], None]]


def prepare(form: Format, raw: NDArray[np.uint8]) -> Packing:
    """How to pack a stored matrix, (rows, blocks, block_bytes).

    A row of floats is filled up with zeros to whole vectors, as the buffers are that it is multiplied with.

    Raises:
        UnsupportedModel: the number of columns does not fit the packed layout.
    """
    packed = form.packed
    if packed.is_float and raw.shape[1] % ROWS:
        raw = np.pad(raw, ((0, 0), (0, -raw.shape[1] % ROWS), (0, 0)))
    rows, columns = len(raw), raw.shape[1] * form.block
    if columns % packed.unit:
        raise UnsupportedModel(
            f"a {form.name} matrix of {columns} columns; the number must be a multiple of {packed.unit}"
        )
    matrix = Matrix(packed, rows, columns, aligned(packed.matrix_bytes(rows, columns)))
    name = ("pack_float", (packed.bits // 8,)) if packed.is_float else ("pack_int", (packed,))
    native = shared().function(KernelKey(*name), 4)
    at_once = max(1, PIECE_VALUES // (ROWS * columns))

    def piece(first: int) -> None:
        count = min(at_once, matrix.groups - first)
        blocks = raw[first * ROWS : (first + count) * ROWS]
        if len(blocks) < count * ROWS:
            padding = np.zeros((count * ROWS - len(blocks), *blocks.shape[1:]), np.uint8)
            blocks = np.concatenate([blocks, padding])
        to = matrix.address + first * packed.group_bytes(columns)
        arrays, record = _record(form, blocks, columns, count, to)
        native(record.ctypes.data, 0, 0, 1)
        del arrays  # the record holds their addresses

    return Packing(matrix, [functools.partial(piece, first) for first in range(0, matrix.groups, at_once)])


def pack(packings: Iterable[Packing], threads: int) -> None:
    """Do the work of all, on some threads."""
    pieces = [piece for packing in packings for piece in packing.pieces]
    if threads == 1:
        for piece in pieces:
            piece()
        return
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(piece) for piece in pieces]:
            done.result()


def _record(
    form: Format, blocks: NDArray[np.uint8], columns: int, groups: int, out: int
) -> tuple[list[NDArray[Any]], NDArray[np.int64]]:
    """The packing kernel's record, and the arrays whose addresses it holds."""
    if form.split is None:
        flat = np.ascontiguousarray(blocks)
        words = PackFloat.pack({"values": flat.ctypes.data, "columns": columns, "groups": groups, "out": out})
        return [flat], np.array([0, 0, *words], np.int64)
    fields: Fields = form.split(blocks)
    arrays = [np.ascontiguousarray(a) for a in (fields.values, *fields.sides)]
    sides = {f"side{i}": arrays[1 + i].ctypes.data if 1 + i < len(arrays) else 0 for i in range(4)}
    words = PackInt.pack(
        {"values": arrays[0].ctypes.data, "columns": columns, "groups": groups, "out": out, **sides}
    )
    return arrays, np.array([0, 0, *words], np.int64)
