"""Mamba-2: the state of each head decays and adds a token's value, with weights that depend on the token.

(T, D) → (T, D). (Dao and Gu 2024)
"""

from __future__ import annotations

from pellucid.kernels.matmul.packed_layout import ROWS, round_up
from pellucid.model.spec import Mamba, Norm
from pellucid.plan.attention import regroup
from pellucid.plan.builder import Builder
from pellucid.plan.feedforward import apply
from pellucid.plan.norm import norm
from pellucid.plan.recurrent.parts import (
    GATE,
    GATED,
    STEP,
    ScanShape,
    convolution_values,
    convolve,
    decays,
    scan,
    state,
)

ABOUT = {
    "gate": GATE,
    "x": "values, before the convolution",
    "b": "keys (B), before the convolution",
    "c": "queries (C), before the convolution",
    "step": STEP,
}


def mamba(builder: Builder, stage: str, kind: Mamba, x: str, out: str) -> str:
    """out = mamba(x), without the residual addition."""
    inner, of_groups = kind.heads * kind.head_dim, kind.groups * kind.state
    shape = ScanShape(
        kind.heads,
        kind.groups,
        round_up(kind.state, ROWS),
        round_up(kind.head_dim, ROWS),
        kind.heads // kind.groups,
    )
    kept = state(
        builder,
        stage,
        x=convolution_values(kind.taps, inner),
        b=convolution_values(kind.taps, of_groups),
        c=convolution_values(kind.taps, of_groups),
        memory=shape.values,
    )
    widths = {"gate": inner, "x": inner, "b": of_groups, "c": of_groups, "step": kind.heads}
    made = {}
    for (part, width), factor in zip(widths.items(), kind.multipliers):
        to = f"inner.{part}"
        made[part] = builder.linear(f"{stage}.{part}", x, f"{stage}.{part}", width, to, bias=kind.bias)
        builder.point(made[part], ABOUT[part])
        builder.scale(f"{stage}.{part}_scale", made[part], factor, "the same, times a factor")
    for part in ("x", "b", "c"):
        made[part] = convolve(
            builder, f"{stage}.{part}_conv", made[part], kind.taps, kept, part, bias=kind.conv_bias, silu=True
        )
        builder.point(made[part], "the same, after the convolution")
    steps, decay = decays(builder, stage, made["step"], kind.limits)
    scanned = scan(
        builder,
        stage,
        shape,
        kept,
        q=regroup(builder, f"{stage}.c_groups", made["c"], kind.groups, kind.state, shape.key_dim),
        k=regroup(builder, f"{stage}.b_groups", made["b"], kind.groups, kind.state, shape.key_dim),
        v=regroup(builder, f"{stage}.x_heads", made["x"], kind.heads, kind.head_dim, shape.value_dim),
        decays=decay,
        factors=steps,
        skip=True,
        delta=False,
        width=kind.head_dim,
    )
    scanned = regroup(builder, f"{stage}.heads", scanned, kind.heads, shape.value_dim, kind.head_dim)
    if kind.norm and kind.norm_first:
        scanned = _group_norm(builder, f"{stage}.output_norm", kind, kind.norm, scanned)
    gated = made["gate"]
    apply(builder, f"{stage}.gated", "silu", gated, scanned, f"(T, {inner})")
    builder.point(gated, GATED)
    if kind.norm and not kind.norm_first:
        gated = _group_norm(builder, f"{stage}.output_norm", kind, kind.norm, gated)
    return builder.linear(
        f"{stage}.output",
        gated,
        f"{stage}.output",
        builder.spec.embedding.width,
        out,
        bias=kind.output_bias,
    )


def _group_norm(builder: Builder, stage: str, kind: Mamba, how: Norm, x: str) -> str:
    """Normalize each group of x separately, with its own weights."""
    groups, each = kind.groups, kind.heads * kind.head_dim // kind.groups
    if groups == 1:
        return builder.point(norm(builder, stage, stage, how, x, x), "the same, normalised")
    padded = round_up(each, ROWS)
    wide = regroup(builder, f"{stage}.groups", x, groups, each, padded)
    norm(builder, stage, stage, how, wide, wide, parts=groups, count=each, apart=True, letters="G D")
    builder.point(wide, "the same, normalised by group")
    return regroup(builder, f"{stage}.joined", wide, groups, padded, each)
