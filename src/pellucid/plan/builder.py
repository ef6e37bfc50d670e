"""The builder of plans: buffers by name, operations in order, and the matrix product.

The functions of ``embedding.py`` to ``outputs.py`` append unfused operations to the builder. The passes then
optimize the list of operations.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from typing import Any

from pellucid.errors import UnsupportedModel
from pellucid.kernels.core.definitions import KernelKey, definition
from pellucid.kernels.core.record import StepRecord
from pellucid.kernels.matmul.layouts import BLOCK, ROWS, PackedLayout, round_up
from pellucid.kernels.matmul.quantize import block_bytes
from pellucid.model.shapes import smoothing_slots
from pellucid.model.spec import ModelSpec
from pellucid.plan.plan import (
    LETTER,
    At,
    BiasTable,
    BucketTable,
    Buffer,
    Cache,
    Fill,
    Operation,
    Plan,
    Setup,
    Value,
    Vector,
    Weights,
)
from pellucid.plan.points import AttentionMask, Point, PointKind, RowKind, View
from pellucid.runtime.cache_layout import CachedLayer

ROW_COUNT: Mapping[RowKind, int] = {  # no operation has the row kind "once"
    "tokens": StepRecord.at.tokens,
    "outputs": StepRecord.at.outputs,
    "sequences": StepRecord.at.sequences,
}
NO_BIAS = Fill(0.0, ROWS)


def columns(width: int) -> str:
    """The name of a partition in which each thread has some columns of a buffer of this width."""
    return f"columns of {width}"


def tiles(width: int) -> str:
    """The name of a partition in which each thread has some columns of some rows (``kernels/matmul/product.py``)."""
    return f"tiles of {width}"


def heads(count: int) -> str:
    """The name of a partition in which each thread has a contiguous range of the (row, head) pairs, in row-major order.

    A row has ``count`` heads.
    """
    return f"{count} heads a row"


SMOOTHED = {"columns": "smoothed"}
"""The parameter of a kernel that multiplies columns by factors before they are rounded."""


class Builder:
    """Collects the buffers and operations of a plan.

    ``layouts`` is the packed layout of each slot's matrix. ``activation_bits`` (8, 16 or 24) is the width of quantized
    activations in integer products. ``kv_dtype`` is the dtype of keys and values, a name in ``kv_layout.KV_DTYPES``
    (None: a default for these activations and weights). The names of all slots, stages and hook points begin with
    ``prefix``: the encoder of an encoder-decoder has one.
    """

    def __init__(
        self,
        spec: ModelSpec,
        layouts: Mapping[str, PackedLayout],
        activation_bits: int,
        kv_dtype: str | None,
        prefix: str = "",
    ) -> None:
        self.prefix, self.spec, self.layouts = prefix, spec, layouts
        self.activation_bits, self.kv_dtype = activation_bits, kv_dtype
        self.sensitive_bits = max(16, activation_bits)
        """Activation bits of sensitive matrix products (docs/decisions/0003-activations-of-8-or-16-bits.md)."""
        self.layers: list[CachedLayer] = []
        self.cached_attention: dict[int, int] = {}  # number of a block → number of its layer in the cache
        self._for_step: dict[CachedLayer, int] = {}
        self.operations: list[Operation] = []
        self.buffers: dict[str, Buffer] = {}
        self.constants: dict[str, tuple[float, ...]] = {}
        self.tables: dict[str, BiasTable | BucketTable] = {}
        self.setup: Builder | None = None
        """Collects the operations that run once when the model is loaded, on ``setup_rows`` rows."""
        self.setup_rows = 0
        self.points: dict[str, Point] = {}
        self._smoothing = smoothing_slots(spec)
        self._counts: dict[str, int] = {}
        self._widths: dict[str, int] = {}
        self._operands: dict[str, dict[str, Value]] = {}
        self._views: dict[str, View | None] = {}

    def buffer(
        self,
        name: str,
        width: int,
        rows: RowKind = "tokens",
        *,
        letters: str = "D",
        activation_bits: int = 0,
        dtype: str = "float32",
    ) -> str:
        """Declare a buffer with this width. Earlier uses of the name share its memory.

        Layers may use a buffer with different widths. The memory is allocated for the widest use. In each use, the rows
        have the width of this use, rounded up to whole SIMD vectors.

        Raises:
            UnsupportedModel: two uses of a name differ in rows or type.
        """
        count, width = width, round_up(width, ROWS)
        known = self.buffers.get(name)
        new = Buffer(name, max(width, known.width if known else 0), rows, activation_bits, dtype)
        if known and (known.rows, known.activation_bits, known.dtype) != (rows, activation_bits, dtype):
            raise UnsupportedModel(f"buffer {name} has two uses of different kinds: {known} and {new}")
        if self._widths.get(name) != width:
            self._forget(name)
        self.buffers[name], self._widths[name], self._counts[name] = new, width, count
        self._views[name] = None if activation_bits else View(1, count, count, width, letters)
        return name

    def view(self, name: str, letters: str, parts: int, count: int, stride: int = 0, places: str = "") -> None:
        """Declare the view of a row of a buffer: ``parts`` times ``count`` values, with a stride of ``stride`` values.

        The stride is by default ``count``. ``letters`` names the dimensions, such as "H K"; "" keeps the names. If
        ``places`` is given, each part is a row of its own, and the buffer ``places`` has the row numbers.
        """
        letters = letters or self.letters_of(name)
        width = self._widths[name] // (parts if places else 1)
        stride = width if places else stride or count
        self._views[name] = View(parts, count, stride, width, letters, places)

    def letters_of(self, name: str) -> str:
        """The names of the dimensions of a buffer's current use."""
        view = self._views[name]
        return view.letters if view else ""

    def emit(
        self,
        stage: str,
        kernel: KernelKey | str,
        fields: Mapping[str, Value],
        reads: tuple[str, ...],
        writes: tuple[str, ...],
        shape: str = "",
        rows: RowKind = "tokens",
        *,
        partitions: Mapping[str, str] | None = None,
        cost: tuple[int, int] = (0, 0),
    ) -> None:
        """Append an operation, with the current view of each buffer that it writes.

        ``kernel`` may be the name of a kernel without parameters. The record's field ``rows``, if it has this field, is
        set here. ``cost`` is the number of bytes of weights, and the number of multiply-adds (`Operation`).
        """
        key = KernelKey(kernel) if isinstance(kernel, str) else kernel
        record, views = definition(key.name).record, tuple(self._views.get(buffer) for buffer in writes)
        if record and "rows" in record.fields:
            fields = {**fields, "rows": ROW_COUNT[rows]}
        operation = Operation(stage, key, fields, reads, writes, shape, *cost, rows, partitions or {}, views=views)
        self.operations.append(operation)
        self._forget(*writes)

    def _forget(self, *changed: str) -> None:
        for operand in [*self._operands]:
            if operand in changed or operand.rpartition(".q")[0] in changed:
                del self._operands[operand]

    def point(
        self,
        value: str,
        about: str,
        *,
        name: str = "",
        unit: str = "",
        kind: PointKind = "value",
        view: View | None = None,
        mask: AttentionMask | None = None,
        state: Cache | None = None,
        scaled: bool = False,
    ) -> str:
        """Declare that the value just written to a buffer is a hook point. Returns the buffer.

        By default ``name`` is the stage of the operation that wrote the value, and ``view`` the current view of the
        buffer. ``state`` is the place of a value in the cache. The other arguments are fields of the ``Point``.
        """
        index = len(self.operations) - 1
        while value not in self.operations[index].writes:
            index -= 1
        op = self.operations[index]
        name, view = name or op.stage, view or self._views[value]
        assert view is not None, name
        assert name not in self.points, name
        write, part = (state.layer, state.part) if state else (op.writes.index(value), "")
        dtype = "float32" if state else self.buffers[value].dtype
        self.points[name] = Point(
            name, about, view, index, write, op.rows, kind, dtype, unit, part, mask, bool(self.prefix), scaled
        )
        return value

    def width_of(self, buffer: str) -> int:
        """Number of columns of a buffer in its current use, rounded up to whole SIMD vectors."""
        return self._widths[buffer]

    def count_of(self, buffer: str) -> int:
        """Number of columns of a buffer that hold values. The other columns are zeros."""
        return self._counts[buffer]

    def quantized(self, x: str, stage: str, activation_bits: int, smoothing: str = "") -> str:
        """The buffer of activation blocks of x, times the vector in the slot ``smoothing``, if it is not ""."""
        kernel = KernelKey("quantize", activation_bits=activation_bits, **(SMOOTHED if smoothing else {}))
        factors: Value = Vector(smoothing) if smoothing else 0
        return self._operand(
            x, f"{stage}_quantize", kernel, f"q{activation_bits}", activation_bits, replicated=0, factors=factors
        )

    def rounded(self, x: str, stage: str) -> str:
        """The buffer of x in bfloat16."""
        return self._operand(x, f"{stage}_round", KernelKey("to_bf16"), "q_bf16", 0)

    def _operand(self, x: str, stage: str, kernel: KernelKey, suffix: str, activation_bits: int, **more: Value) -> str:
        """The buffer of x as the operand of a product, which ``kernel`` writes. It has a ``suffix`` that begins with q.

        Emits the operation only if x has changed since the last call, or the operand has other fields ``more``.
        """
        width, rows = self.width_of(x), self.buffers[x].rows
        out = self.buffer(f"{x}.{suffix}", width, rows, activation_bits=activation_bits)
        if self._operands.get(out) != more:
            fields: dict[str, Value] = {"x": At(x), "width": width, "out": At(out)}
            self.emit(stage, kernel, fields | more, (x,), (out,), rows=rows)
            self._operands[out] = more
        return out

    def product(
        self,
        name: str,
        stage: str,
        x: str,
        packed: PackedLayout,
        width: int,
        activation_bits: int = 0,
        smoothing: str = "",
        **parameters: Any,
    ) -> tuple[KernelKey, str, int]:
        """The kernel of a product of x with a matrix, the kernel's input buffer, and the bytes of ``width`` columns.

        For floating-point weights the kernel is ``name``_float, and its input is x; for pairs of bfloat16 numbers it is
        ``name``_bf16, and its input is x in bfloat16. For integer weights the kernel is
        ``name``_int8, and its input is the activation blocks of x. ``activation_bits`` is the width of the values in
        these blocks (0: the width of the plan). ``smoothing`` is the slot of their factors, or "".

        Raises:
            UnsupportedModel: the width is not a multiple of the layout's scale unit.
        """
        if packed.kind == "bf16_pairs":
            return KernelKey(f"{name}_bf16", packed=packed, **parameters), self.rounded(x, stage), 4 * width
        if packed.is_float:
            return KernelKey(f"{name}_float", packed=packed, **parameters), x, 4 * width
        if width % packed.unit:
            raise UnsupportedModel(f"{stage}: width {width} is not a multiple of the format's {packed.unit}")
        bits = activation_bits or self.activation_bits
        kernel = KernelKey(f"{name}_int8", packed=packed, activation_bits=bits, **parameters)
        return kernel, self.quantized(x, stage, bits, smoothing), width // BLOCK * block_bytes(bits)

    def linear(
        self,
        stage: str,
        x: str,
        out_features: int,
        out: str,
        *,
        slot: str = "",
        bias: bool | str = False,
        activation_bits: int = 0,
        letters: str = "D",
        parts: int = 1,
    ) -> str:
        """out = x Wᵀ (+ bias), with the matrix W (out_features, width of x) in ``slot``.weight.

        The slot has by default the name of the stage. ``letters`` names the dimensions of the result, which has
        ``parts`` heads. If ``bias`` is a string, it is the name of the slot of the bias; if it is True, the bias is in
        ``slot``. ``activation_bits``, if not 0, replaces the value of the plan.

        Raises:
            UnsupportedModel: the width is not a multiple of the layout's scale unit.
        """
        slot = slot or stage
        packed, width, rows = self.layouts[f"{slot}.weight"], self.width_of(x), self.buffers[x].rows
        self.buffer(out, out_features, rows)
        self.view(out, letters, parts, out_features // parts)
        addend = Vector(f"{bias if isinstance(bias, str) else slot}.bias") if bias else NO_BIAS
        fields: dict[str, Value] = {"weights": Weights(f"{slot}.weight"), "columns": width, "replicated": 0}
        fields |= {"groups": round_up(out_features, ROWS) // ROWS, "group_bytes": packed.group_bytes(width)}
        fields |= {"addend": addend, "addend_group": 4 * ROWS if bias else 0, "addend_row": 0}
        fields |= {"out": At(out), "out_stride": 4 * self.width_of(out)}
        # Smoothed activations of 8 bits are as exact as others of 16 bits.
        smoothing = self._smoothing.get(f"{slot}.weight", "")
        kernel, source, fields["x_stride"] = self.product(
            "matmul", stage, x, packed, width, 0 if smoothing else activation_bits, smoothing
        )
        fields["x"] = At(source)
        shape, partitions = f"({LETTER[rows]}, {width}) x ({out_features}, {width})ᵀ", {out: tiles(self.width_of(out))}
        cost = packed.matrix_bytes(out_features, width), out_features * width
        self.emit(stage, kernel, fields, (source,), (out,), shape, rows, partitions=partitions, cost=cost)
        return out

    def add(self, stage: str, a: str, b: str, factor: float = 1.0) -> str:
        """a += factor * b."""
        width, rows = self.width_of(a), self.buffers[a].rows
        fields: dict[str, Value] = {"a": At(a), "b": At(b), "factor": factor, "width": width, "out": At(a)}
        self.emit(stage, "add", fields, (a, b), (a,), f"({LETTER[rows]}, {width})", rows)
        return a

    def scale(self, stage: str, x: str, factor: float, about: str = "") -> str:
        """x *= factor; no operation if the factor is 1. With a description ``about``, the result is a hook point."""
        if factor != 1:
            self.in_place(stage, "scale", x, factor=factor)
            if about:
                self.point(x, about)
        return x

    def softcap(self, stage: str, x: str, cap: float) -> str:
        """x = cap * tanh(x / cap)."""
        return self.in_place(stage, "softcap", x, cap=cap)

    def clip(self, stage: str, x: str, bound: float) -> str:
        """x = min(max(x, -bound), bound)."""
        return self.in_place(stage, "clip", x, bound=bound)

    def in_place(self, stage: str, kernel: str, x: str, *others: str, **fields: Value) -> str:
        """Change x in place by a kernel that also reads ``others``. The record has x, width, rows and ``fields``."""
        width, rows = self.width_of(x), self.buffers[x].rows
        fields |= {"x": At(x), "width": width}
        self.emit(stage, kernel, fields, (x, *others), (x,), f"({LETTER[rows]}, {width})", rows)
        return x

    def named(self, name: str) -> str:
        """The full name of a slot or stage of this model."""
        return self.prefix + name

    def cached(self, shape: CachedLayer) -> int:
        """Add a layer to the cache. Returns its number in the cache."""
        self.layers.append(shape)
        return len(self.layers) - 1

    def cached_for_step(self, shape: CachedLayer) -> int:
        """As ``cached``, for a layer that no later step reads. All these layers of one shape share their memory."""
        if shape not in self._for_step:
            self._for_step[shape] = self.cached(shape)
        return self._for_step[shape]

    def finish(self, output: str) -> Plan:
        """Return the plan. ``output`` is the buffer of its result."""
        points = sorted(self.points.values(), key=attrgetter("operation"))
        return Plan(
            tuple(self.operations),
            self.buffers,
            self.constants,
            output,
            tuple(self.layers),
            self.tables,
            {point.name: point for point in points},
            Setup(self.setup.finish(""), self.setup_rows) if self.setup else None,
        )
