"""A convolution over neighbouring tokens of the embeddings, whose output is added after the first block."""

from __future__ import annotations

from pellucid.kernels.core.definitions import KernelKey
from pellucid.plan.builder import Builder
from pellucid.plan.feedforward import apply
from pellucid.plan.norm import norm
from pellucid.plan.plan import At, Operation, Value

OUT = "convolved"


def convolution(builder: Builder, x: str) -> None:
    """Compute the convolution of the embeddings x, before the blocks change x, if the model has a convolution."""
    kind = builder.spec.convolution
    if not kind:
        return
    width = builder.count_of(x)
    joined = builder.buffer("neighbours", kind.taps * width)
    fields: dict[str, Value] = {
        "x": At(x),
        "x_stride": 4 * builder.width_of(x),
        "width": width,
        "taps": kind.taps,
        "out": At(joined),
        "out_stride": 4 * builder.width_of(joined),
    }
    shape = f"(T, {width}) → (T, {kind.taps * width})"
    builder.emit(Operation("convolution.neighbours", KernelKey("neighbours"), fields, (x,), (joined,), shape))
    builder.linear("convolution", joined, width, OUT, bias=True)
    builder.point(OUT, "the convolution of the embeddings over neighbouring tokens")
    if kind.activation:
        apply(builder, "convolution.activation", kind.activation, OUT, "", f"(T, {width})")
        builder.point(OUT, "the convolution of the embeddings, after its activation")


def add_convolution(builder: Builder, x: str) -> None:
    """Add the convolution to the output x of the first block, and normalize the sum."""
    builder.add("convolution.residual", x, OUT)
    builder.point(x, "the output of the first block and the convolution")
    norm(builder, "convolution.norm", builder.spec.blocks[0].norm, x)
