"""The builder of plans: buffers by name, operations in order, and the matrix product.

The functions of ``embedding.py`` ... ``project.py`` append unfused operations to it. The passes then optimize the list.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from pellucid.errors import UnsupportedModel
from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.core.record import StepRecord
from pellucid.kernels.matmul.packed_layout import BLOCK, ROWS, PackedLayout, round_up
from pellucid.kernels.matmul.quantize import block_bytes
from pellucid.model.spec import ModelSpec
from pellucid.plan.plan import (
    LETTER,
    At,
    Buffer,
    DistanceTable,
    Fill,
    KeyTable,
    Operation,
    Plan,
    RowKind,
    Value,
    Vector,
    View,
    Weights,
)
from pellucid.runtime.cache_layout import CachedLayer

COUNT: Mapping[RowKind, int] = {  # no operation has the row kind "once"
    "tokens": StepRecord.at.tokens,
    "outputs": StepRecord.at.outputs,
    "sequences": StepRecord.at.sequences,
}
NO_BIAS = Fill(0.0, ROWS)


def columns(width: int) -> str:
    """Name of a partition: each thread has some columns of a buffer of this width."""
    return f"columns of {width}"


def tiles(width: int) -> str:
    """Name of a partition: each thread has some columns of some rows (``kernels/matmul/partition.py``)."""
    return f"tiles of {width}"


def heads(count: int) -> str:
    """Name of a partition: each thread has a contiguous range of the (row, head) pairs, in row-major order.

    A row has ``count`` heads.
    """
    return f"{count} heads a row"


class Builder:
    """Collects the buffers and operations of a plan.

    ``layouts`` is the packed layout of each slot's matrix. ``activation_bits`` (8, 16 or 24) is the width of quantized
    activations in integer products. ``kv_dtype`` is the dtype of keys and values, a name in ``kv_layout.KV_DTYPES``
    (None: a default for these activations and weights).
    """

    def __init__(
        self, spec: ModelSpec, layouts: Mapping[str, PackedLayout], activation_bits: int, kv_dtype: str | None
    ) -> None:
        self.spec, self.layouts, self.activation_bits, self.kv_dtype = (
            spec,
            layouts,
            activation_bits,
            kv_dtype,
        )
        self.fine_bits = max(16, activation_bits)
        """Activation bits of sensitive matrix products (docs/decisions/0003-activations-of-8-or-16-bits.md)."""
        self.layers: list[CachedLayer] = []
        self.cached_attention: dict[int, int] = {}  # number of a block → number of its layer in the cache
        self.operations: list[Operation] = []
        self.buffers: dict[str, Buffer] = {}
        self.constants: dict[str, tuple[float, ...]] = {}
        self.tables: dict[str, DistanceTable | KeyTable] = {}
        self._counts: dict[str, int] = {}
        self._widths: dict[str, int] = {}
        self._quantized: set[str] = set()
        self._views: dict[str, View | None] = {}

    def buffer(
        self,
        name: str,
        width: int,
        rows: RowKind = "tokens",
        *,
        activation_bits: int = 0,
        whole: bool = False,
    ) -> str:
        """Declare a buffer with this width. Earlier uses of the name share its memory.

        Layers may use a buffer with different widths. The memory has the width of the widest use. Each use has rows of
        its own width, rounded up to whole vectors.

        Raises:
            UnsupportedModel: two uses of a name differ in rows or type.
        """
        count, width = width, round_up(width, ROWS)
        known = self.buffers.get(name)
        new = Buffer(name, max(width, known.width if known else 0), rows, activation_bits, whole)
        if known and replace(known, width=0) != replace(new, width=0):
            raise UnsupportedModel(f"buffer {name} would need two kinds: {known} and {new}")
        if self._widths.get(name) != width:
            self._quantized = {q for q in self._quantized if q != name and q.rpartition(".q")[0] != name}
        self.buffers[name], self._widths[name], self._counts[name] = new, width, count
        self._views[name] = None if activation_bits else View(1, count, count, width)
        return name

    def divide(self, name: str, parts: int, count: int, apart: int = 0) -> None:
        """Declare that a row of a buffer has ``parts`` of ``count`` values, with a stride of ``apart`` (0: count)."""
        self._views[name] = View(parts, count, apart or count, self._widths[name])

    def spread(self, name: str, parts: int, count: int, places: str) -> None:
        """Declare that each of a token's ``parts``, of ``count`` values, is a row of a buffer.

        The buffer ``places`` has the row numbers.
        """
        width = self._widths[name] // parts
        self._views[name] = View(parts, count, width, width, places)

    def conceal(self, name: str) -> None:
        """Declare that the rows of a buffer do not belong to tokens. Its values cannot be traced."""
        self._views[name] = None

    def emit(self, operation: Operation) -> None:
        """Append an operation. Records the current view of each buffer that it writes."""
        views = tuple(self._views.get(buffer) for buffer in operation.writes)
        self.operations.append(replace(operation, views=views))
        self._quantized = {q for q in self._quantized if q.rpartition(".q")[0] not in operation.writes}

    def width_of(self, buffer: str) -> int:
        """Number of columns of a buffer in its current use, in whole vectors."""
        return self._widths[buffer]

    def count_of(self, buffer: str) -> int:
        """Number of columns of a buffer that hold values. The other columns are zeros."""
        return self._counts[buffer]

    def quantized(self, x: str, stage: str, activation_bits: int) -> str:
        """The buffer of activation blocks of x. Quantization is emitted once until x changes."""
        width, rows = self.width_of(x), self.buffers[x].rows
        blocks = self.buffer(f"{x}.q{activation_bits}", width, rows, activation_bits=activation_bits)
        if blocks not in self._quantized:
            fields: dict[str, Value] = {"x": At(x), "width": width, "out": At(blocks)}
            fields |= {"replicated": 0, "rows": COUNT[rows]}
            kernel = KernelKey("quantize", activation_bits=activation_bits)
            self.emit(Operation(f"{stage}_quantize", kernel, fields, (x,), (blocks,), rows=rows))
            self._quantized.add(blocks)
        return blocks

    def linear(
        self,
        stage: str,
        x: str,
        slot: str,
        out_features: int,
        out: str,
        *,
        bias: bool | str = False,
        activation_bits: int = 0,
        parts: int = 1,
    ) -> str:
        """out = x Wᵀ (+ bias), with the matrix W (out_features, width of x) in ``slot``.weight.

        ``parts`` is the number of heads of the result. If ``bias`` is a name, the bias comes from the slot of this
        name, otherwise from ``slot``. ``activation_bits``, if not 0, replaces the value of the plan.

        Raises:
            UnsupportedModel: the width is not a multiple of the layout's scale unit.
        """
        packed, width, rows = self.layouts[f"{slot}.weight"], self.width_of(x), self.buffers[x].rows
        self.buffer(out, out_features, rows)
        self.divide(out, parts, out_features // parts)
        fields: dict[str, Value] = {
            "weights": Weights(f"{slot}.weight"),
            "groups": round_up(out_features, ROWS) // ROWS,
            "group_bytes": packed.group_bytes(width),
            "columns": width,
            "out": At(out),
            "out_stride": 4 * self.width_of(out),
            "addend": Vector(f"{bias if isinstance(bias, str) else slot}.bias") if bias else NO_BIAS,
            "addend_group": 4 * ROWS if bias else 0,
            "addend_row": 0,
            "replicated": 0,
            "rows": COUNT[rows],
        }
        if packed.is_float:
            kernel, source = KernelKey("matmul_float", packed=packed), x
            fields |= {"x": At(x), "x_stride": 4 * width}
        else:
            if width % packed.unit:
                raise UnsupportedModel(
                    f"{stage}: width {width} is not a multiple of the format's {packed.unit}"
                )
            activation_bits = activation_bits or self.activation_bits
            kernel = KernelKey("matmul_int8", packed=packed, activation_bits=activation_bits)
            source = self.quantized(x, stage, activation_bits)
            fields |= {"x": At(source), "x_stride": width // BLOCK * block_bytes(activation_bits)}
        self.emit(
            Operation(
                stage,
                kernel,
                fields,
                (source,),
                (out,),
                shape=f"({LETTER[rows]}, {width}) x ({out_features}, {width})ᵀ",
                weight_bytes=packed.matrix_bytes(out_features, width),
                multiply_adds=out_features * width,
                rows=rows,
                partitions={out: tiles(self.width_of(out))},
            )
        )
        return out

    def add(self, stage: str, a: str, b: str, factor: float = 1.0) -> str:
        """a += factor * b."""
        width, rows = self.width_of(a), self.buffers[a].rows
        fields: dict[str, Value] = {
            "a": At(a),
            "b": At(b),
            "factor": factor,
            "width": width,
            "out": At(a),
            "rows": COUNT[rows],
        }
        self.emit(
            Operation(stage, KernelKey("add"), fields, (a, b), (a,), f"({LETTER[rows]}, {width})", rows=rows)
        )
        return a

    def scale(self, stage: str, x: str, factor: float) -> str:
        """x *= factor. Emits no operation if the factor is 1."""
        return self.in_place(stage, "scale", x, factor=factor) if factor != 1 else x

    def softcap(self, stage: str, x: str, cap: float) -> str:
        """x = cap * tanh(x / cap)."""
        return self.in_place(stage, "softcap", x, cap=cap)

    def clip(self, stage: str, x: str, most: float) -> str:
        """x = min(max(x, -most), most)."""
        return self.in_place(stage, "clip", x, most=most)

    def in_place(self, stage: str, kernel: str, x: str, *others: str, **fields: Value) -> str:
        """Change x in place by a kernel that also reads ``others``. Its record has x, width, rows and ``fields``."""
        width, rows = self.width_of(x), self.buffers[x].rows
        fields |= {"x": At(x), "width": width, "rows": COUNT[rows]}
        shape = f"({LETTER[rows]}, {width})"
        self.emit(Operation(stage, KernelKey(kernel), fields, (x, *others), (x,), shape, rows=rows))
        return x

    def cached(self, shape: CachedLayer) -> int:
        """Add a layer to the cache. Returns its number in the cache."""
        self.layers.append(shape)
        return len(self.layers) - 1

    def finish(self, output: str) -> Plan:
        """Return the plan. ``output`` is the buffer of its result."""
        return Plan(
            tuple(self.operations), self.buffers, self.constants, output, tuple(self.layers), self.tables
        )
