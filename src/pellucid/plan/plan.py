"""A plan: a model as a flat list of operations over named buffers. Plain data.

It can be printed, sliced and rewritten; ``passes.py`` holds the rewrites, ``bind.py`` turns it into the table of
records that the executor runs. Building a plan reads no weights and compiles nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
from msgspec import Struct, field
from msgspec.structs import replace
from numpy.typing import NDArray

from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.matmul.packed_layout import ROWS, round_up
from pellucid.runtime.cache_layout import CachedLayer

RowKind = Literal["tokens", "outputs", "sequences", "once"]
LETTER: Mapping[RowKind, str] = {"tokens": "T", "outputs": "R", "sequences": "B", "once": "1"}


Barrier = Literal["none", "rows", "always"]
REPLICATED = "replicated"


class Buffer(Struct, frozen=True):
    """A named array of a step: ``rows`` x ``width``.

    Its type is float32, int32 if ``whole``, or activation blocks of ``activation_bits`` 8, 16 or 24.
    """

    name: str
    width: int
    rows: RowKind = "tokens"
    activation_bits: int = 0
    whole: bool = False


class View(Struct, frozen=True):
    """What a row of a buffer holds: ``parts`` (heads, say) of ``count`` values, each ``apart`` columns from the last.

    A row has ``width`` columns in all; those between the parts are padding. With ``places`` each part has a row of its
    own, whose number is in that buffer, (T, parts) int32.
    """

    parts: int
    count: int
    apart: int
    width: int
    places: str = ""

    @property
    def place_width(self) -> int:
        """Columns of a row of ``places``, whole vectors."""
        return round_up(self.parts, ROWS)


class At(Struct, frozen=True):
    """The address of a buffer, or of what is ``offset`` bytes behind."""

    buffer: str
    offset: int = 0


class Weights(Struct, frozen=True):
    """The address of a slot's packed matrix, or of those of ``experts``, each in whole groups of 16 rows."""

    slot: str
    experts: int = 1


class Vector(Struct, frozen=True):
    """The address of a slot's values as float32; of a matrix (N, J) as (J, N) if ``by_column``."""

    slot: str
    by_column: bool = False


class Constant(Struct, frozen=True):
    """The address of a small float64 array that the plan contains (rotary frequencies)."""

    name: str


class Fill(Struct, frozen=True):
    """The address of ``count`` float32 numbers, all equal to ``number``: what a missing bias or weight amounts to."""

    number: float
    count: int


class Cache(Struct, frozen=True):
    """The address of a part of a cached layer in page 0 of its group: "keys", "values", or of a state."""

    layer: int
    part: str


class ScoreBias(Struct, frozen=True):
    """The address of a table's values for head 0, for a query at position 0 and a key at position 0."""

    table: str


class PageBytes(Struct, frozen=True):
    """Bytes from one page of a cached layer's group to the next."""

    layer: int


class CacheGroup(Struct, frozen=True):
    """The number of a cached layer's group, which has its own block tables."""

    layer: int


Value: TypeAlias = (
    int | float | At | Weights | Vector | Constant | Fill | Cache | CacheGroup | ScoreBias | PageBytes
)


BEYOND = 15
"""Values of a table that the attention kernel may read beyond the last key."""


class DistanceTable(Struct, frozen=True):
    """Values that are added to attention scores by the distance of a key: -slope * |distance|, for each head.

    It covers ``past`` distances from 0 backwards and ``future`` ones from 1 forwards.
    """

    slopes: tuple[float, ...]
    past: int
    future: int

    moves: ClassVar[bool] = True
    """True: the column of a key depends on the query's position too."""

    @property
    def columns(self) -> int:
        """Values of a head."""
        return self.past + self.future + BEYOND

    @property
    def origin(self) -> int:
        """The column of a key and a query at position 0."""
        return self.past - 1

    def values(self) -> NDArray[np.float32]:
        """(H, columns) float32; distance 0 is in column ``past`` - 1."""
        distances = np.abs(np.arange(self.columns) - self.origin)
        values: NDArray[np.float32] = (-np.outer(self.slopes, distances)).astype(np.float32)
        return values


class KeyTable(Struct, frozen=True):
    """Values that are added to attention scores by the position of a key: scale * slope * position, for each head.

    Slope, position and their product are rounded to bfloat16 (transformers' ``build_alibi_tensor`` of Falcon).
    """

    unscaled: tuple[float, ...]
    scale: float
    positions: int

    moves: ClassVar[bool] = False
    origin: ClassVar[int] = 0

    @property
    def slopes(self) -> tuple[float, ...]:
        """The slope of each head, without rounding."""
        return tuple(self.scale * slope for slope in self.unscaled)

    @property
    def columns(self) -> int:
        """Values of a head."""
        return self.positions + BEYOND

    def values(self) -> NDArray[np.float32]:
        """(H, columns) float32; position 0 is in column 0."""
        slopes = rounded_to_bfloat16(np.array(self.unscaled))
        positions = rounded_to_bfloat16(np.arange(self.columns))
        products = rounded_to_bfloat16(np.outer(slopes, positions))
        values: NDArray[np.float32] = (self.scale * products.astype(np.float64)).astype(np.float32)
        return values


def rounded_to_bfloat16(x: NDArray[Any]) -> NDArray[np.float32]:
    """The nearest bfloat16 of finite numbers, as float32; ties to even."""
    bits = x.astype(np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
    return rounded.astype(np.uint32).view(np.float32)


class Operation(Struct, frozen=True):
    """One operation: the stage of the model that it computes, its kernel and its record.

    ``stage`` names the value that it writes, whatever has been fused: "blocks.0.attention.residual" is the residual
    stream after attention in every plan. ``includes`` are earlier stages that it also computes, whose values are not in
    memory.

    ``reads`` and ``writes`` name buffers, and "cache.3" for a layer's pages; the barriers follow from them.
    ``weight_bytes`` is how much of the weights it reads in a step, ``multiply_adds`` how many it computes for a row.
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
    """How threads divide the buffers of which each thread touches only its own part. Operations that divide a buffer in
    the same way need no barrier between them. ``REPLICATED``: in a step with one row each thread has a copy, thread t
    in row t; this says nothing about steps with several rows.
    """
    includes: tuple[str, ...] = ()
    views: tuple[View | None, ...] = ()
    """What the buffers that it writes hold; None: no value of the model, or none in the order of the tokens."""
    barrier: Barrier = "none"
    """Whether all threads must meet before the next operation: always, or only if there is more than one row."""

    @property
    def label(self) -> str:
        """The stage and the stages that it includes, for display: "blocks.0.attention.output+residual"."""
        *_, last = self.stage.rpartition(".")
        return "+".join([*self.includes, last]) if self.includes else self.stage

    def with_fields(self, **fields: Value) -> Operation:
        """A copy with some fields of the record changed."""
        return replace(self, fields={**self.fields, **fields})


class Plan(Struct, frozen=True):
    """Operations in order, the buffers they use, and the constants they need.

    ``output`` is the buffer with a step's result: logits (R, V), or sentence vectors (B, D). ``layers`` is the shape of
    each layer in the cache.
    """

    operations: tuple[Operation, ...]
    buffers: Mapping[str, Buffer]
    constants: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    output: str = ""
    layers: tuple[CachedLayer, ...] = ()
    tables: Mapping[str, DistanceTable | KeyTable] = field(default_factory=dict)
    source: Plan | None = None
    """The plan before the passes; None for a plan that none has changed."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of the packed weights that its operations read."""
        return sum(op.weight_bytes for op in self.operations)

    def kernels(self) -> list[KernelKey]:
        """The kernels that the plan needs, each once."""
        return list(dict.fromkeys(op.kernel for op in self.operations))

    def _repr_html_(self) -> str:
        """The operations as a table, of the first two blocks alone."""
        from pellucid.util.display import table

        rows = []
        for op in self.operations:
            kind, _, rest = op.label.partition(".")
            if kind != "blocks" or int(rest.partition(".")[0]) < 2:
                rows.append([op.label, str(op.kernel), op.shape, op.weight_bytes])
        return table(["stage", "operation", "shape", "bytes"], rows, f"{self!r}: the first two blocks")

    def __repr__(self) -> str:
        return (
            f"Plan({len(self.operations)} operations, {len(self.buffers)} buffers, {len(self.layers)} cached layers, "
            f"output {self.output!r})"
        )
