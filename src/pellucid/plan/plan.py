"""A plan: a model as a flat list of operations over named buffers.

A plan is plain data: it can be printed, sliced and rewritten. ``passes.py`` rewrites it, and ``bind.py`` turns it into
the table of records that the executor runs. Building a plan reads no weights and compiles nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
from msgspec import Struct, field
from msgspec.structs import replace
from numpy.typing import NDArray

from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.matmul.floats import bf16_rounded
from pellucid.model.positions import RelativeBuckets, RelativePositions
from pellucid.plan.points import Point, RowKind, View
from pellucid.runtime.cache_layout import CachedLayer

LETTER: Mapping[RowKind, str] = {"tokens": "T", "outputs": "R", "sequences": "B", "once": "1"}


Barrier = Literal["none", "rows", "always"]
REPLICATED = "replicated"


class Buffer(Struct, frozen=True):
    """A named array of a step: ``rows`` x ``width``.

    Its dtype is "float32" or "int32". If ``activation_bits`` is 8, 16 or 24, it has activation blocks instead.
    """

    name: str
    width: int
    rows: RowKind = "tokens"
    activation_bits: int = 0
    dtype: str = "float32"


class At(Struct, frozen=True):
    """The address of a buffer plus ``offset`` bytes."""

    buffer: str
    offset: int = 0


class Weights(Struct, frozen=True):
    """The address of a slot's packed matrix, or of its ``experts`` matrices, each padded to whole groups of 16 rows."""

    slot: str
    experts: int = 1


class Vector(Struct, frozen=True):
    """The address of a slot's values as float32. With ``by_column`` a matrix (N, J) is transposed to (J, N)."""

    slot: str
    by_column: bool = False


class Constant(Struct, frozen=True):
    """The address of a small float64 array of the plan (for example rotary frequencies)."""

    name: str


class Fill(Struct, frozen=True):
    """The address of ``count`` float32 numbers, all equal to ``number``, in place of an absent bias or weight."""

    number: float
    count: int


class Cache(Struct, frozen=True):
    """The address of a part of a cached layer ("keys", "values", or a part of a state) in page 0 of its group.

    With ``of_source`` the layer is in the cache of the encoder's sources. The same holds for `PageBytes` and
    `CacheGroup`.
    """

    layer: int
    part: str
    of_source: bool = False


class ScoreBias(Struct, frozen=True):
    """The address, in a table of score biases or buckets, of the value for head 0, query and key at position 0."""

    table: str


class PageBytes(Struct, frozen=True):
    """Bytes from one page to the next in the group of a cached layer."""

    layer: int
    of_source: bool = False


class CacheGroup(Struct, frozen=True):
    """The number of the group of a cached layer. Each group has its own pages in a block table."""

    layer: int
    of_source: bool = False


Value: TypeAlias = int | float | At | Weights | Vector | Constant | Fill | Cache | CacheGroup | ScoreBias | PageBytes


BEYOND = 15
"""Number of values of a table that the attention kernel may read beyond the last key."""


class _ByDistance(Struct, frozen=True):
    """Columns by the distance between query and key: ``past`` from 0 backwards, ``future`` from 1 forwards."""

    past: int
    future: int

    by_distance: ClassVar[bool] = True
    """True: the column of a value depends on the distance between query and key, not on the key alone."""

    @property
    def columns(self) -> int:
        """Number of values of a head."""
        return self.past + self.future + BEYOND

    @property
    def origin(self) -> int:
        """The column of a key and a query at position 0."""
        return self.past - 1


class DistanceTable(_ByDistance, frozen=True):
    """Attention score biases by the distance of a key: -slope * |distance|, for each head.

    The table covers ``past`` distances from 0 backwards and ``future`` distances from 1 forwards.
    """

    slopes: tuple[float, ...]

    learned: ClassVar[tuple[Vector, ...]] = ()
    """The vectors of weights that the values depend on."""

    def values(self) -> NDArray[np.float32]:
        """The table (H, columns) float32. Distance 0 is in column ``past`` - 1."""
        distances = np.abs(np.arange(self.columns) - self.origin)
        values: NDArray[np.float32] = (-np.outer(self.slopes, distances)).astype(np.float32)
        return values


class LearnedTable(_ByDistance, frozen=True):
    """Learned attention score biases by the distance of a key, for each of ``heads`` (``RelativeBuckets``).

    ``vector`` holds a bias (count, H) for each of ``buckets``. ``past`` and ``future`` are as in `DistanceTable`.
    """

    vector: Vector
    heads: int
    buckets: RelativeBuckets

    @property
    def learned(self) -> tuple[Vector, ...]:
        """The vectors of weights that the values depend on."""
        return (self.vector,)

    def values(self, weights: NDArray[np.float32]) -> NDArray[np.float32]:
        """The table (H, columns) float32. Distance 0 is in column ``past`` - 1."""
        distances = np.arange(self.columns) - self.origin
        chosen = bucket_of(distances, self.buckets, both_sides=self.future > 0)
        return np.ascontiguousarray(weights[chosen, : self.heads].T)


def bucket_of(distances: NDArray[Any], kind: RelativeBuckets, *, both_sides: bool) -> NDArray[np.int64]:
    """The bucket of each distance (position of the key minus position of the query).

    Computes in float32, as transformers' ``_relative_position_bucket``: the limits of buckets depend on rounding.
    """
    count, first = kind.count, np.zeros(len(distances), np.int64)
    if both_sides:
        count //= 2
        first += count * (distances > 0)
    away = np.abs(distances) if both_sides else np.maximum(-distances, 0)
    exact = count // 2
    ratios = np.maximum(away, exact).astype(np.float32) / np.float32(exact)
    # Not NumPy's logarithm of float32, which depends on the processor.
    ratio = np.log(ratios.astype(np.float64)).astype(np.float32)
    steps = ratio / np.float32(math.log(kind.max_distance / exact)) * np.float32(count - exact)
    far = np.minimum(exact + steps.astype(np.int64), count - 1)
    found: NDArray[np.int64] = first + np.where(away < exact, away, far)
    return found


class KeyTable(Struct, frozen=True):
    """Attention score biases by the position of a key: scale * slope * position, for each head.

    Slope, position and their product are rounded to bfloat16 (transformers' ``build_alibi_tensor`` of Falcon).
    """

    unscaled: tuple[float, ...]
    scale: float
    positions: int

    learned: ClassVar[tuple[Vector, ...]] = ()
    by_distance: ClassVar[bool] = False
    origin: ClassVar[int] = 0

    @property
    def slopes(self) -> tuple[float, ...]:
        """The slope of each head, without rounding."""
        return tuple(self.scale * slope for slope in self.unscaled)

    @property
    def columns(self) -> int:
        """Number of values of a head."""
        return self.positions + BEYOND

    def values(self) -> NDArray[np.float32]:
        """The table (H, columns) float32. Position 0 is in column 0."""
        slopes = bf16_rounded(np.array(self.unscaled, np.float32))
        positions = bf16_rounded(np.arange(self.columns, dtype=np.float32))
        products = bf16_rounded(np.outer(slopes, positions))
        values: NDArray[np.float32] = (self.scale * products.astype(np.float64)).astype(np.float32)
        return values


BiasTable: TypeAlias = DistanceTable | LearnedTable | KeyTable


class BucketTable(Struct, frozen=True):
    """The bucket of each distance of a query and a key, in a context of ``context`` tokens (`RelativePositions`)."""

    kind: RelativePositions
    context: int

    learned: ClassVar[tuple[Vector, ...]] = ()

    @property
    def origin(self) -> int:
        """The column of a key and a query at the same position."""
        return self.context - 1

    def values(self) -> NDArray[np.int32]:
        """The table (columns,) int32. The columns after the ``origin`` are the next keys."""
        distances = range(self.origin, -self.context - BEYOND, -1)
        return np.array([self.kind.bucket(distance) for distance in distances], np.int32)


def block_of(name: str) -> int | None:
    """The number of the block of a stage or a point; None outside the blocks."""
    first, _, rest = name.partition(".")
    return int(rest.partition(".")[0]) if first == "blocks" else None


class Operation(Struct, frozen=True):
    """One operation: the stage of the model that it computes, its kernel and its record.

    ``stage`` names the value that the operation writes. The name does not depend on fusion:
    "blocks.0.attention.residual" is the residual stream after attention in every plan. ``includes`` lists earlier
    stages that are fused into the operation. Their values are not in memory.

    ``reads`` and ``writes`` name buffers, or the pages of a layer ("cache.3"). The barriers follow from them.
    ``weight_bytes`` is the number of bytes of weights read per step, ``multiply_adds`` the number of multiply-adds per
    row.
    """

    stage: str
    kernel: KernelKey
    fields: Mapping[str, Value]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    shape: str = ""
    weight_bytes: int = 0
    multiply_adds: int = 0
    rows: RowKind = "tokens"
    partitions: Mapping[str, str] = field(default_factory=dict)
    """Buffer → partition, for buffers that are divided among the threads: each thread touches only its own part.
    Operations with the same partition of a buffer need no barrier between them. ``REPLICATED``: in a step with one row,
    each thread has its own copy of the row, and the copy of thread t is row t of the buffer. In steps with several
    rows, the buffer is not replicated.
    """
    includes: tuple[str, ...] = ()
    views: tuple[View | None, ...] = ()
    """The view of each written buffer; None: activation blocks."""
    barrier: Barrier = "none"
    """The barrier before the next operation: none, always, or only in steps with more than one row ("rows")."""

    @property
    def label(self) -> str:
        """The stage with the stages that are fused into it, for display: "blocks.0.attention.output+residual"."""
        *_, last = self.stage.rpartition(".")
        return "+".join([*self.includes, last]) if self.includes else self.stage

    def with_fields(self, **fields: Value) -> Operation:
        """A copy with some fields of the record changed."""
        return replace(self, fields={**self.fields, **fields})


class Plan(Struct, frozen=True):
    """Operations in order, with their buffers and constants.

    ``output`` is the buffer with the result of a step: logits (R, V), or sentence vectors (B, D). ``layers`` is the
    shape of each layer in the cache. ``points`` are the hook points by name, in the order of the operations. ``setup``
    runs once when the model is loaded.
    """

    operations: tuple[Operation, ...]
    buffers: Mapping[str, Buffer]
    constants: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    output: str = ""
    layers: tuple[CachedLayer, ...] = ()
    tables: Mapping[str, BiasTable | BucketTable] = field(default_factory=dict)
    points: Mapping[str, Point] = field(default_factory=dict)
    setup: Setup | None = None
    source: Plan | None = None
    """The plan before the passes; None if this plan is not optimized."""
    encoder: Plan | None = None
    """The plan of the encoder of an encoder-decoder. It has no output, but writes the layers that this plan reads."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of packed weights that its operations read."""
        return sum(op.weight_bytes for op in self.operations)

    @property
    def with_setup(self) -> tuple[Operation, ...]:
        """The operations of the setup, then the operations of a step."""
        return (*self.setup.plan.operations, *self.operations) if self.setup else self.operations

    def kernels(self) -> list[KernelKey]:
        """The kernels that the plan and its setup need, each once."""
        return list(dict.fromkeys(op.kernel for op in self.with_setup))

    def _repr_html_(self) -> str:
        """The operations as a table. Only the first two blocks are shown."""
        from pellucid.util.display import table

        first = (op for op in self.operations if (block_of(op.label) or 0) < 2)
        rows = [[op.label, str(op.kernel), op.shape, op.weight_bytes] for op in first]
        return table(["stage", "operation", "shape", "bytes"], rows, f"{self!r}: the first two blocks")

    def __repr__(self) -> str:
        return (
            f"Plan({len(self.operations)} operations, {len(self.buffers)} buffers, {len(self.layers)} cached layers, "
            f"output {self.output!r})"
        )


class Setup(Struct, frozen=True):
    """A plan that runs once when a model is loaded, as a step of ``rows`` tokens at the positions from 0 on.

    It computes constants of the weights: buffers of the row kind "once", which the plan of a step reads.
    """

    plan: Plan
    rows: int
