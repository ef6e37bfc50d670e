"""A gated short convolution: out(c * conv(b * x)). (T, D) → (T, D). (Liquid AI 2025, LFM2)"""

from __future__ import annotations

from pellucid.model.spec import ShortConvolution
from pellucid.plan.builder import Builder
from pellucid.plan.feedforward import apply
from pellucid.plan.recurrent.parts import convolution_values, convolve, state


def short_convolution(builder: Builder, stage: str, kind: ShortConvolution, x: str, out: str) -> str:
    """out = short_convolution(x), without the residual addition."""
    width = builder.spec.embedding.width
    kept = state(builder, x=convolution_values(kind.taps, width))
    b, c, value = (
        builder.linear(f"{stage}.{part}", x, f"{stage}.{part}", width, f"inner.{part}", bias=kind.bias)
        for part in ("b", "c", "x")
    )
    apply(builder, f"{stage}.product", "none", b, value, f"(T, {width})")
    mixed = convolve(builder, f"{stage}.conv", b, kind.taps, kept, "x", bias=kind.bias, silu=False)
    apply(builder, f"{stage}.gated", "none", c, mixed, f"(T, {width})")
    return builder.linear(f"{stage}.output", c, f"{stage}.output", width, out, bias=kind.bias)
