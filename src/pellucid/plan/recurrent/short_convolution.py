"""A gated short convolution: out(c * conv(b * x)). (T, D) → (T, D). (Liquid AI 2025, LFM2)"""

from __future__ import annotations

from pellucid.model.spec import ShortConvolution
from pellucid.plan.builder import Builder
from pellucid.plan.feedforward import apply
from pellucid.plan.recurrent.parts import add_state, convolution_values, convolve, gated


def short_convolution(builder: Builder, stage: str, kind: ShortConvolution, x: str, out: str) -> str:
    """out = short_convolution(x), without the residual addition."""
    width = builder.spec.embedding.width
    state = add_state(builder, stage, x=convolution_values(kind.taps, width))
    abouts = {"b": "the gates before the convolution", "c": "the gates after the convolution", "x": "values"}
    parts = {}
    for part, about in abouts.items():
        parts[part] = builder.linear(f"{stage}.{part}", x, width, f"inner.{part}", bias=kind.bias)
        builder.point(parts[part], about)
    b, c, value = parts.values()
    apply(builder, f"{stage}.product", "none", b, value, f"(T, {width})")
    builder.point(b, "values, times the gates before the convolution")
    ahead = kind.taps // 2 if kind.centered else 0
    mixed = convolve(
        builder, f"{stage}.conv", b, kind.taps, state, "x", bias=kind.bias, silu=False, ahead=ahead
    )
    builder.point(mixed, "the result of the convolution")
    gated(builder, stage, "none", c, mixed, width)
    return builder.linear(f"{stage}.output", c, width, out, bias=kind.bias)
