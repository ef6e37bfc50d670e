"""Operations that copy the heads of a row, to add padding, to remove padding, or to join parts of heads."""

from __future__ import annotations

from pellucid.kernels.core.definitions import KernelKey
from pellucid.plan.builder import ROW_COUNT, Builder, heads
from pellucid.plan.plan import LETTER, At, Operation, Value


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
    fields: dict[str, Value] = {
        "x": At(x, 4 * start),
        "x_stride": 4 * builder.width_of(x),
        "width": width,
        "out": At(out),
        "out_stride": 4 * builder.width_of(out),
        "out_width": out_width,
        "offset": offset,
        "heads": count,
        "rows": ROW_COUNT[rows],
    }
    builder.view(out, letters or builder.letters_of(x), count, min(offset + width, out_width), out_width)
    shape = f"({LETTER[rows]}, {count}, {width}) → ({LETTER[rows]}, {count}, {out_width})"
    kernel, partitions = KernelKey("heads"), {out: heads(count)}
    builder.emit(Operation(stage, kernel, fields, (x,), (out,), shape, rows=rows, partitions=partitions))
    return out
