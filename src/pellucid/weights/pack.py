"""Packs stored tensors for the kernels, in pieces of work for several threads, and decodes tensors to float32.

Packing only moves bits, so it is lossless. ``decode`` is the reference that defines which values the bits mean.
"""

from __future__ import annotations

import functools
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from pellucid.errors import UnsupportedModel
from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.core.library import shared
from pellucid.kernels.matmul.floats import bf16_bits
from pellucid.kernels.matmul.layouts import ROWS, FileLayout, PackedLayout, round_up
from pellucid.kernels.matmul.pack import PackRecord
from pellucid.runtime.memory import address, aligned
from pellucid.util.interpreter import join
from pellucid.weights.checkpoint import Checkpoint, Tensor
from pellucid.weights.quant.format import Q8_0, BlockFields, Format, lookup

T = TypeVar("T")
# Values per piece of work: few enough that all threads get pieces, enough to hide Python's overhead.
PIECE_VALUES = 1 << 20


class Matrix(Struct, frozen=True):
    """A packed matrix of (rows, columns); ``data`` is uint8, aligned to a cache line."""

    packed: PackedLayout
    rows: int
    columns: int
    data: NDArray[np.uint8]

    @property
    def address(self) -> int:
        """The address of the first group of 16 rows."""
        return address(self.data)

    @property
    def groups(self) -> int:
        """The number of groups of 16 rows. The last group may be padded with zeros."""
        return round_up(self.rows, ROWS) // ROWS


def stored_as(tensor: Tensor) -> tuple[Format, tuple[int, int, int]]:
    """A tensor's format and the shape of its bytes, (rows, blocks, block_bytes); a vector is one row.

    Raises UnsupportedModel: the format is not implemented.
    """
    form = lookup(tensor.format, f"tensor {tensor.name}")
    rows = int(np.prod(tensor.shape[:-1], dtype=np.int64))
    return form, (rows, tensor.shape[-1] // form.block, form.block_bytes)


def decode_blocks(form: Format, raw: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Decode (rows, blocks, block_bytes) uint8 to (rows, columns) float32, by the format's definition."""
    rows, packed = len(raw), form.packed
    if packed.is_float:
        flat = np.ascontiguousarray(raw).reshape(rows, -1)
        if packed.kind in ("bf16", "bf16_pairs"):
            return (flat.view("<u2").astype(np.uint32) << 16).view(np.float32)
        return flat.view("<f4" if packed.kind == "f32" else "<f2").astype(np.float32)
    fields = form.fields(raw)
    scale, minimum = _scales(packed, fields)
    table = np.array(packed.table or range(256), np.int16)
    values = (table[fields.values] - packed.zero_point).astype(np.float32)
    values *= np.repeat(scale, packed.sub, axis=1)
    if minimum is not None:
        values += np.repeat(packed.minimum_sign * minimum, packed.sub, axis=1)
    return values


def _scales(packed: PackedLayout, fields: BlockFields) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """The scale and the minimum of every ``sub`` columns, float32. The minimum is None if the format has no minima."""
    own = fields.scale_fields[-2:] if packed.minimum else fields.scale_fields[-1:]
    if packed.scale == "e8m0":
        bits = np.maximum(own[0].astype(np.int32) << 23, 1 << 22)  # e = 0 is a subnormal
        factors = [bits.view(np.float32) * np.float32(0.5)]
    else:
        factors = [factor.astype(np.float32) for factor in own]
    if packed.super_scales:
        small = fields.scale_fields[: -len(own)]
        if packed.joined_scales:
            small = (small[0] & 15, small[0] >> 4)
        factors = [np.repeat(f, packed.unit // packed.sub, axis=1) * s for f, s in zip(factors, small)]
    return factors[0], factors[1] if packed.minimum else None


def decode(checkpoint: Checkpoint, name: str) -> NDArray[np.float32]:
    """Decode a tensor to float32, in its own shape."""
    tensor = checkpoint.tensors[name]
    form, shape = stored_as(tensor)
    return decode_blocks(form, checkpoint.data(name).reshape(shape)).reshape(tensor.shape)


class Packing(Struct, frozen=True):
    """A matrix to pack, and the pieces of work that pack it. Pieces may run in any order and on any thread."""

    matrix: Matrix
    pieces: list[Callable[[], None]]


class _Scratch(threading.local):
    """A thread's buffer for stored bytes. All pieces reuse it, because allocation takes as much time as reading."""

    def __init__(self) -> None:
        self._bytes = np.empty(0, np.uint8)

    def take(self, nbytes: int) -> NDArray[np.uint8]:
        """A buffer (nbytes,) uint8, not cleared; the same memory each time."""
        if len(self._bytes) < nbytes:
            self._bytes = aligned(nbytes)
        return self._bytes[:nbytes]


_scratch = _Scratch()


def padded_blocks(packed: PackedLayout, blocks: int) -> int:
    """Number of blocks of a packed row.

    A row of floats is padded with zeros to whole vectors, like the activations that it is multiplied with.
    """
    return round_up(blocks, ROWS // packed.number_values) if packed.is_float else blocks


def packer(form: Format) -> KernelKey:
    """The kernel that packs matrices of a format."""
    if form.packed.is_float:
        return KernelKey("pack_float", size=form.block_bytes)
    return KernelKey("pack_int", packed=form.packed, stored=form.stored)


def prepare(
    form: Format,
    shape: tuple[int, int, int],
    read: Callable[[int, NDArray[np.uint8]], None],
    memory: NDArray[np.uint8] | None = None,
) -> Packing:
    """The pieces of work that pack a stored matrix of ``shape``, (rows, blocks, block_bytes).

    ``read(start, out)`` fills ``out``, (n,) uint8, with the stored bytes from ``start`` on. It is called from several
    threads. The packed matrix is written to ``memory``, which must have exactly the size of the matrix. If ``memory``
    is None, new memory is allocated. Raises UnsupportedModel: the number of columns does not fit the packed layout.
    """
    packed, (rows, blocks, block_bytes) = form.packed, shape
    padded = padded_blocks(packed, blocks)
    columns = padded * form.block
    if columns % packed.unit:
        raise UnsupportedModel(
            f"a {form.name} matrix has {columns} columns; the number must be a multiple of {packed.unit}"
        )
    data = aligned(packed.matrix_bytes(rows, columns)) if memory is None else memory
    matrix = Matrix(packed, rows, columns, data)
    native = shared().function(packer(form))
    groups_per_piece = max(1, PIECE_VALUES // (ROWS * columns))
    row_bytes, group_bytes, start = blocks * block_bytes, packed.group_bytes(columns), matrix.address

    def piece(first: int) -> None:
        count = min(groups_per_piece, matrix.groups - first)
        stored_rows = min(count * ROWS, rows - first * ROWS)
        stored = _scratch.take(count * ROWS * row_bytes)
        read(first * ROWS * row_bytes, stored[: stored_rows * row_bytes])
        stored[stored_rows * row_bytes :] = 0
        if padded > blocks:
            by_row = stored.reshape(count * ROWS, row_bytes)
            stored = np.pad(by_row, ((0, 0), (0, (padded - blocks) * block_bytes)))
        to = start + first * group_bytes
        numbers = columns // packed.number_values
        where = {"stored": address(stored), "columns": numbers, "groups": count, "out": to}
        words = np.array(PackRecord.pack(where), np.int64)
        native(address(words), 0, 0, 1)

    return Packing(matrix, [functools.partial(piece, first) for first in range(0, matrix.groups, groups_per_piece)])


def pack(packings: Iterable[Packing], threads: int) -> None:
    """Run the pieces of all ``packings`` on ``threads`` threads. Raises the first error of a piece."""
    waiting = deque(piece for packing in packings for piece in packing.pieces)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for piece in _taken(waiting):
                piece()
        except BaseException as error:
            failures.append(error)
            waiting.clear()

    team = [threading.Thread(target=work, name="pellucid-pack", daemon=True) for _ in range(max(threads, 1))]
    started: list[threading.Thread] = []
    try:
        for thread in team:
            thread.start()
            started.append(thread)
        for thread in team:
            join(thread)
    except BaseException:
        # For example Ctrl-C: wait for the running pieces, because the caller then closes the file.
        waiting.clear()
        for thread in started:
            thread.join()
        raise
    if failures:
        raise failures[0]


def _taken(waiting: deque[T]) -> Iterator[T]:
    """Take items from a queue that several threads share, until it is empty."""
    while True:
        try:
            item = waiting.popleft()
        except IndexError:
            return
        yield item


# Converts floats to pairs of bfloat16 numbers, for weights that are rounded when they are loaded.

BF16_PAIRS = Format("BF16", PackedLayout("bf16_pairs", 16), FileLayout(2, 4))
"""Blocks of two consecutive numbers of a row."""


def to_bf16(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Round (N, D) float32 to pairs (N, D/2, 4) uint8; D is even."""
    return bf16_bits(values).view(np.uint8).reshape(len(values), -1, BF16_PAIRS.block_bytes)


# Converts floats to Q8_0 blocks, for weights that are quantized when they are loaded.

MAX_INTEGER = 127


def to_q8_0(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Quantize (N, D) float32 to blocks (N, D/32, 34) uint8; D is a multiple of 32.

    d = max |x| / 127 of the block, rounded to float16; q = round(x / d), ties to even. d is NaN if a value of the block
    is not finite or too large for float16, so that results show it.
    """
    blocks = values.reshape(len(values), -1, Q8_0.block)
    raw = np.empty((*blocks.shape[:2], Q8_0.block_bytes), np.uint8)
    with np.errstate(all="ignore"):
        scale = (np.abs(blocks).max(-1) * np.float32(1 / MAX_INTEGER)).astype(np.float16)
        finite = np.isfinite(scale)
        step = np.where(finite, scale, 0).astype(np.float32)
        inverse = np.divide(np.float32(1), step, out=np.zeros_like(step), where=step > 0)
        # A rounded scale may be a little smaller than max |x| / 127.
        integers = np.clip(np.rint(blocks * inverse[..., None]), -MAX_INTEGER, MAX_INTEGER)
        integers[~finite] = 0
    raw[..., :2] = np.where(finite, scale, np.float16(np.nan))[..., None].view(np.uint8)
    raw[..., 2:] = integers.astype(np.int8).view(np.uint8)
    return raw
