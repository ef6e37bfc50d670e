"""Reads the stored values of a slot: whole, partial, transposed or joined tensors (``weight_map.Slot``)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from math import prod

import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from pellucid.errors import FileFormatError, UnsupportedModel, shown
from pellucid.model.weight_map import Slot
from pellucid.weights.checkpoint import Checkpoint, Tensor
from pellucid.weights.pack import BF16_PAIRS, decode_blocks, stored_as, to_bf16, to_q8_0
from pellucid.weights.quant.format import Q8_0, Format, lookup

# Factors that share the rounding error between activations and weights of 8 bits (Xiao et al. 2023, SmoothQuant).
#
# A block of 32 values has one scale, so a column with large activations makes the other columns of its block coarse.
# The product stays the same if the activations of a column are divided by a factor and its weights multiplied by the
# factor:
#
#     factor = (|norm weight| + |norm bias|)^(1/4) / (root mean square of the column's weights)^(3/4)
#
# SmoothQuant measures the size of activations on texts. Here the norm before the product estimates it, so the weights,
# which are known, have the larger exponent (docs/decisions/0052-encoders-throughput.md has the figures).

LARGEST = 64.0  # limit of a factor and of its inverse


def factors(norm: NDArray[np.float32], bias: NDArray[np.float32], matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """The factor of each column, (D,), from a norm's weight and bias (D,) and the matrix (N, D). Their mean is 1.

    Columns without a finite factor, such as columns of zeros, have 1. All operations are exact or correctly rounded,
    so that the factors have the same bits on all processors.
    """
    with np.errstate(all="ignore"):
        # A sum over rows adds in the order of the rows. A sum of neighbours would depend on the width of registers.
        weights = np.sqrt(np.add.reduce(np.square(matrix.astype(np.float64)), axis=0) / len(matrix))
        sizes = np.abs(norm.astype(np.float64)) + np.abs(bias.astype(np.float64))
        found = np.sqrt(np.sqrt(sizes / weights) / weights)
        found = np.where(np.isfinite(found) & (found > 0), found, np.nan)
        usable = found[~np.isnan(found)]
        if not len(usable):
            return np.ones(len(found), np.float32)
        found = np.clip(found / (math.fsum(usable) / len(usable)), 1 / LARGEST, LARGEST)
        return np.where(np.isnan(found), 1.0, found).astype(np.float32)


Shape = tuple[int, ...]
CONVERSIONS: Mapping[str, tuple[Format, Callable[[NDArray[np.float32]], NDArray[np.uint8]]]] = {
    "Q8_0": (Q8_0, to_q8_0),
    "BF16": (BF16_PAIRS, to_bf16),
}
"""The formats that floats are converted to when they are loaded, and the conversions of (N, D) float32."""

ADAPTED_ROWS = 32
"""Number of rows that an adapter changes at once, so that the float64 values stay in the processor's cache."""


def _wrong(tensor: Tensor, problem: str) -> FileFormatError:
    return FileFormatError(tensor.path, tensor.name, problem, tensor.offset)


def shape_of(tensor: Tensor, source: Slot) -> Shape:
    """The shape of the part of a tensor that a slot uses.

    Raises:
        FileFormatError: the tensor has too few rows, or cannot be transposed.
    """
    shape = tensor.shape
    if source.flat:
        if len(shape) not in (1, 2):
            raise _wrong(tensor, f"tensor has shape {shape}; it must have one or two dimensions")
        shape = (prod(shape),)
    if source.joined:
        if len(shape) != 3:
            raise _wrong(tensor, f"tensor has shape {shape}; it must have three dimensions")
        shape = (shape[0], shape[1] * shape[2])
    if source.transpose:
        if len(shape) not in (2, 3):
            raise _wrong(tensor, f"tensor has shape {shape}; it must be a matrix")
        stored = shape[-2] if source.columns is None else _columns(tensor, source.columns)
        shape = (*shape[:-2], shape[-1], stored)
    if source.rows is None:
        return shape
    start, stop = source.rows
    rows = shape[0] if len(shape) == 1 else prod(shape[:-1])
    if not 0 <= start < stop <= rows:
        needed = f"rows {start:,} to {stop:,} (its shape is {tensor.shape})"
        raise _wrong(tensor, f"tensor has {rows:,} rows; the model needs {needed}")
    count = len(range(start, stop, source.step))
    return (count, *shape[-1:]) if len(shape) > 1 else (count,)


def format_of(tensor: Tensor, source: Slot) -> Format:
    """The format of the part of a tensor that a slot uses.

    This is the format of the file, except if the slot is converted when it is loaded, and F32 if an adapter changes the
    values or quantized rows become columns.

    Raises:
        UnsupportedModel: the format of the tensor is not implemented.
    """
    form = lookup(tensor.format, f"tensor {shown(tensor.name)}")
    if source.loaded_as:
        return CONVERSIONS[source.loaded_as][0]
    if source.adapter:
        return lookup("F32", tensor.name)
    return form if source.columns is None or form.packed.is_float else lookup("F32", tensor.name)


def _columns(tensor: Tensor, columns: tuple[int, int]) -> int:
    """Number of rows of a tensor that are used as columns."""
    start, stop = columns
    if len(tensor.shape) != 2 or not 0 <= start < stop <= tensor.shape[0]:
        needed = f"rows {start:,} to {stop:,} of a matrix"
        raise _wrong(tensor, f"tensor has shape {tensor.shape}; the model needs {needed}")
    return stop - start


def by_expert(checkpoint: Checkpoint, sources: Sequence[Slot], experts: int) -> list[tuple[Slot, ...]]:
    """The sources of each expert's matrix: separate tensors, or the expert's rows of one tensor (E, N, D)."""
    if len(sources) == 1 and experts > 1:
        rows = prod(shape_of(checkpoint.tensors[sources[0].tensor], sources[0])[:-1]) // experts
        return [(replace(sources[0], rows=(i * rows, (i + 1) * rows)),) for i in range(experts)]
    each = len(sources) // experts
    return [tuple(sources[i * each : (i + 1) * each]) for i in range(experts)]


class _SlotPart(Struct, frozen=True, dict=True):
    """The part of a slot that is filled by a single tensor."""

    checkpoint: Checkpoint
    source: Slot

    @property
    def tensor(self) -> Tensor:
        return self.checkpoint.tensors[self.source.tensor]

    @cached_property
    def form(self) -> Format:
        return format_of(self.tensor, self.source)

    @cached_property
    def shape(self) -> Shape:
        return shape_of(self.tensor, self.source)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row. A vector is one row."""
        return self.form.row_bytes(self.shape[-1])

    @property
    def rows(self) -> int:
        return prod(self.shape[:-1])

    def read(self, start: int, out: NDArray[np.uint8]) -> None:
        """Fill ``out`` with the bytes of the part from ``start`` on.

        Raises:
            FileFormatError: a weight is NaN or infinite. Its effect on the text may be small, so nobody may notice it.
        """
        self._fill(start, out)
        size = self.form.block_bytes
        skipped = -start % size  # bytes of a block that begins before ``start``
        blocks = out[skipped : skipped + (len(out) - skipped) // size * size].reshape(-1, size)
        if (damaged := self.form.damaged(blocks)) is not None:
            row = (start + skipped + damaged * size) // self.row_bytes
            problem = f"row {row} of {self.rows} has a weight that is NaN or infinite: the file is damaged"
            raise _wrong(self.tensor, f"{problem}; fetch it again")

    def _fill(self, start: int, out: NDArray[np.uint8]) -> None:
        """As ``read``, without the check."""
        if self.source.loaded_as or self.source.adapter:
            compute = self._converted if self.source.loaded_as else self._adapted
            rows = compute(start // self.row_bytes, -(-(start + len(out)) // self.row_bytes))
            out[:] = rows[start % self.row_bytes :][: len(out)]
            return
        if self.source.transpose:
            out[:] = self._gathered[start : start + len(out)]
            return
        if self.source.step > 1:
            out[:] = self._every(start, len(out))
            return
        skipped = 0
        if self.source.rows is not None:
            first = self.source.rows[0]
            skipped = first * self.row_bytes if len(self.shape) > 1 else self.form.row_bytes(first)
        self.checkpoint.read(self.tensor.name, skipped + start, out)

    def _converted(self, first: int, last: int) -> NDArray[np.uint8]:
        values = self._floats.row_values(first, last)
        _, convert = CONVERSIONS[self.source.loaded_as]
        return convert(values * self.factors if self.source.smoothing else values).reshape(-1)

    def _adapted(self, first: int, last: int) -> NDArray[np.uint8]:
        """The bytes of the rows from ``first`` to ``last`` - 1, with the change of the adapter.

        The ranks are added one after the other in float64, so that all processors compute the same bits.
        """
        assert self.source.adapter
        left, right = self._low_rank
        values = self._without_adapter.row_values(first, last)
        for start in range(0, last - first, ADAPTED_ROWS):
            part = values[start : start + ADAPTED_ROWS]
            rows = left[first + start : first + start + len(part)]
            change, product = np.zeros(part.shape), np.empty(part.shape)
            for rank, row in enumerate(right):
                change += np.multiply(rows[:, rank, None], row, out=product)
            part[:] = part + self.source.adapter.scale * change
        return values.reshape(-1).view(np.uint8)

    @cached_property
    def _low_rank(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The two matrices of the adapter: (N, R) for the rows of the part, and (R, D)."""
        adapter, source = self.source.adapter, self.source
        assert adapter
        left, right = (SlotReader(self.checkpoint, (slot,)).values() for slot in (adapter.left, adapter.right))
        start, stop = source.rows or (0, len(left))
        return left[start : stop : source.step].astype(np.float64), right.astype(np.float64)

    @cached_property
    def _without_adapter(self) -> _SlotPart:
        return _SlotPart(self.checkpoint, replace(self.source, adapter=None))

    def row_values(self, first: int, last: int) -> NDArray[np.float32]:
        """The rows from ``first`` to ``last`` - 1 as float32."""
        raw = np.empty((last - first) * self.row_bytes, np.uint8)
        self.read(first * self.row_bytes, raw)
        stored = raw.reshape(last - first, -1, self.form.block_bytes)
        return decode_blocks(self.form, stored).reshape(last - first, -1)

    @cached_property
    def factors(self) -> NDArray[np.float32]:
        """The factor of each column (``Slot.smoothing``)."""
        smoothing = self.source.smoothing
        assert smoothing
        norm, matrix = (SlotReader(self.checkpoint, slots).values() for slots in (smoothing.norm, smoothing.matrix))
        bias = SlotReader(self.checkpoint, smoothing.bias).values() if smoothing.bias else np.zeros_like(norm)
        return factors(norm, bias, matrix)

    @cached_property
    def _floats(self) -> _SlotPart:
        """The same part without the conversion."""
        return _SlotPart(self.checkpoint, replace(self.source, loaded_as="", smoothing=None))

    def _every(self, start: int, count: int) -> NDArray[np.uint8]:
        """``count`` bytes, from ``start`` on, of every ``step``-th row (in a vector: every ``step``-th value)."""
        step, size = self.source.step, self.row_bytes if len(self.shape) > 1 else self.form.block_bytes
        begin, end = start // size, -(-(start + count) // size)  # range among the selected rows
        first = (self.source.rows or (0, 0))[0] + begin * step
        last = first + (end - begin - 1) * step + 1
        rows = self._stored(first * size, last * size).reshape(-1, size)[::step].reshape(-1)
        skipped = start - begin * size
        return rows[skipped : skipped + count]

    @cached_property
    def _gathered(self) -> NDArray[np.uint8]:
        """The bytes of the rows of transposed matrices, which are not contiguous in the file.

        If the tensor holds several matrices, only the matrices that contain the selected rows are read.
        """
        rows, step = self.source.rows, self.source.step
        if self.source.columns is not None:
            return self._rows_as_columns(*self.source.columns)
        if not self.form.packed.is_float:
            raise UnsupportedModel(
                f"tensor {shown(self.tensor.name)} is stored as {self.form.name}, which cannot be transposed: "
                "convert the file with its matrices as (outputs, inputs)"
            )
        *_, inputs, outputs = self.tensor.shape
        size = inputs * outputs * self.form.block_bytes
        start, stop = rows or (0, self.tensor.nbytes // size * outputs)
        first, last = start // outputs, -(-stop // outputs)  # range of the matrices with these rows
        values = self._stored(first * size, last * size).view(f"V{self.form.block_bytes}")
        by_row = values.reshape(-1, inputs, outputs).transpose(0, 2, 1).reshape(-1, inputs)
        begin = first * outputs
        return np.ascontiguousarray(by_row[start - begin : stop - begin : step]).reshape(-1).view(np.uint8)

    def _rows_as_columns(self, start: int, stop: int) -> NDArray[np.uint8]:
        form, (_, blocks, size) = stored_as(self.tensor)
        stored = self._stored(start * blocks * size, stop * blocks * size)
        if form is not self.form:
            stored = decode_blocks(form, stored.reshape(-1, blocks, size)).reshape(-1).view(np.uint8)
        values = stored.view(f"V{self.form.block_bytes}").reshape(stop - start, -1)
        return np.ascontiguousarray(values.T).reshape(-1).view(np.uint8)

    def _stored(self, start: int, stop: int) -> NDArray[np.uint8]:
        out = np.empty(stop - start, np.uint8)
        self.checkpoint.read(self.tensor.name, start, out)
        return out


class SlotReader:
    """Reads a slot from a checkpoint. ``form`` is the block format of the slot's bytes, ``shape`` the slot's shape.

    Raises:
        UnsupportedModel: the format of a tensor is not implemented, the joined tensors differ in format or columns, or
            a vector is cut inside a block. ``read`` and ``values`` raise this error for a quantized matrix that is
            stored transposed.
    """

    def __init__(self, checkpoint: Checkpoint, sources: Sequence[Slot]) -> None:
        self._parts = [_SlotPart(checkpoint, source) for source in sources]
        first = self._parts[0]
        self.form = first.form
        for part in self._parts[1:]:
            if part.form is not first.form or part.shape[1:] != first.shape[1:]:
                raise UnsupportedModel(
                    f"tensors {shown(first.tensor.name)} ({first.form.name}, {first.shape}) and "
                    f"{shown(part.tensor.name)} ({part.form.name}, {part.shape}) form one matrix of the model: their "
                    "formats and numbers of columns must be equal"
                )
        for part, source in zip(self._parts, sources):
            cut = source.step > 1 or any(row % self.form.block for row in source.rows or ())
            if len(part.shape) == 1 and self.form.block > 1 and cut:
                raise UnsupportedModel(
                    f"tensor {shown(source.tensor)} is stored as {self.form.name}, whose blocks of {self.form.block} "
                    "values cannot be cut: convert the file with its vectors as F32"
                )
        self.shape: Shape = (sum(part.shape[0] for part in self._parts), *first.shape[1:])

    @property
    def blocks_shape(self) -> tuple[int, int, int]:
        """The shape of the slot's bytes: (rows, blocks, block_bytes). A vector is one row."""
        rows = prod(self.shape[:-1])
        return rows, self.shape[-1] // self.form.block, self.form.block_bytes

    def read(self, start: int, out: NDArray[np.uint8]) -> None:
        """Fill ``out``, (n,) uint8, with the bytes of the slot from ``start`` on. Thread-safe."""
        filled = 0
        for part in self._parts:
            size = part.rows * part.row_bytes
            if start < size and filled < len(out):
                count = min(size - start, len(out) - filled)
                part.read(start, out[filled : filled + count])
                filled, start = filled + count, start + count
            start -= size

    def values(self) -> NDArray[np.float32]:
        """The values as float32 in the shape of the slot, with ``Slot.negative_exp`` and ``Slot.plus`` applied.

        With ``Slot.smoothing``, a vector has the inverse factors.
        """
        decoded_parts: list[NDArray[np.float32]] = []
        for part in self._parts:
            if part.source.smoothing and not part.source.loaded_as:
                decoded_parts.append(np.float32(1) / part.factors)
                continue
            raw = np.empty(part.rows * part.row_bytes, np.uint8)
            part.read(0, raw)
            shape = (part.rows, part.shape[-1] // self.form.block, self.form.block_bytes)
            with np.errstate(all="ignore"):  # a file may have numbers that are not finite
                decoded = decode_blocks(self.form, raw.reshape(shape)).reshape(part.shape)
                if part.source.negative_exp:
                    # In float64: NumPy's float32 exponentials differ in the last bit between processors.
                    decoded = -np.exp(decoded.astype(np.float64)).astype(np.float32)
                decoded_parts.append(decoded + np.float32(part.source.plus))
        return np.concatenate(decoded_parts) if len(decoded_parts) > 1 else decoded_parts[0]
