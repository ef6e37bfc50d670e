"""Normalization of rows or of each head, and copies of the heads of a row."""

from __future__ import annotations

from pellucid.kernels.core.definitions import KernelKey
from pellucid.model.spec import Norm
from pellucid.plan.builder import Builder, heads
from pellucid.plan.plan import LETTER, At, Fill, Value, Vector


def norm(
    builder: Builder,
    stage: str,
    kind: Norm,
    x: str,
    out: str = "",
    *,
    slot: str = "",
    parts: int = 1,
    count: int = 0,
    own_weights: bool = False,
    factor: float = 1.0,
    letters: str = "",
) -> str:
    """out = norm(x), by default in place. The weight and bias are in ``slot``, by default the name of the stage.

    Each of the ``parts`` of a row is normalized separately. A part has ``count`` values (0: the values of a row,
    divided by ``parts``), and may be padded with zeros. With ``own_weights``, each part has its own weights. A norm
    without weights multiplies by ``factor``. ``letters`` names the dimensions of out, if these differ from the
    dimensions of x.
    """
    slot, out = slot or stage, out or x
    rows, count = builder.buffers[x].rows, count or builder.count_of(x) // parts
    if out != x:  # in place, the buffer keeps its view
        builder.buffer(out, builder.count_of(x), rows)
    width = builder.width_of(x) // parts
    if parts > 1:
        builder.view(out, letters, parts, count, width)
    weight: Value = Vector(f"{slot}.weight") if kind.weight else Fill(factor, width)
    bias: Value = Vector(f"{slot}.bias") if kind.has_bias else Fill(0.0, width)
    fields: dict[str, Value] = {"x": At(x), "width": width, "count": count, "parts": parts, "eps": kind.eps}
    fields |= {"weight": weight, "weight_part": 4 * count if own_weights else 0, "bias": bias}
    fields |= {"out": At(out), "quantized": 0, "factors": 0, "replicated": 0}
    partitions = dict.fromkeys((x, out), heads(parts)) if parts > 1 else {}
    shape = f"({LETTER[rows]}, {count})" if parts == 1 else f"({LETTER[rows]}, {parts}, {count})"
    kernel = KernelKey("norm", kind=kind.kind, activation_bits=8)
    builder.emit(stage, kernel, fields, (x,), (out,), shape, rows, partitions=partitions)
    return out


# Operations that copy the heads of a row, to add padding, to remove padding, or to join parts of heads.


def regroup(builder: Builder, stage: str, x: str, count: int, width: int, padded: int) -> str:
    """Convert (T, count, width) to (T, count, padded): pad each head with zeros, or remove the padding."""
    if width == padded:
        return x
    return place(builder, stage, x, count, width, builder.buffer(f"{x}.heads", count * padded), padded)


def place(
    builder: Builder,
    stage: str,
    x: str,
    count: int,
    width: int,
    out: str,
    out_width: int,
    *,
    offset: int = 0,
    start: int = 0,
    letters: str = "",
) -> str:
    """Copy the heads of x, (T, count, width), into the heads of out, (T, count, out_width).

    A head is copied to column ``offset`` of the head in out, and zeros follow the copied head. The first head begins at
    column ``start`` of x. The dimensions have the names ``letters``, by default the names of x's dimensions.
    """
    rows = builder.buffers[x].rows
    fields: dict[str, Value] = {"x": At(x, 4 * start), "x_stride": 4 * builder.width_of(x), "width": width}
    fields |= {"out": At(out), "out_stride": 4 * builder.width_of(out), "out_width": out_width}
    fields |= {"offset": offset, "heads": count}
    builder.view(out, letters or builder.letters_of(x), count, min(offset + width, out_width), out_width)
    shape = f"({LETTER[rows]}, {count}, {width}) → ({LETTER[rows]}, {count}, {out_width})"
    builder.emit(stage, "heads", fields, (x,), (out,), shape, rows, partitions={out: heads(count)})
    return out
