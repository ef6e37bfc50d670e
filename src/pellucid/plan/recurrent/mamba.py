"""Mamba-2: the state of each head decays and adds a token's value, with weights that depend on the token.

(T, D) → (T, D). (Dao and Gu 2024)
"""

from __future__ import annotations

from pellucid.kernels.matmul.packed_layout import ROWS, round_up
from pellucid.model.spec import Mamba, Norm
from pellucid.plan.builder import Builder
from pellucid.plan.heads import regroup
from pellucid.plan.norm import norm
from pellucid.plan.recurrent.parts import (
    GATE,
    STEP,
    ScanShape,
    add_state,
    convolution_values,
    convolve,
    decays,
    gated,
    scan,
)


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
    state = add_state(
        builder,
        stage,
        x=convolution_values(kind.taps, inner),
        b=convolution_values(kind.taps, of_groups),
        c=convolution_values(kind.taps, of_groups),
        memory=shape.values,
    )
    nouns = {"x": "values", "b": "keys (B)", "c": "queries (C)"}
    abouts = {
        "gate": GATE,
        "step": STEP,
        **{part: f"{noun}, before the convolution" for part, noun in nouns.items()},
    }
    widths = {"gate": inner, "x": inner, "b": of_groups, "c": of_groups, "step": kind.heads}
    parts = {}
    for (part, width), factor in zip(widths.items(), kind.multipliers):
        values = builder.linear(f"{stage}.{part}", x, width, f"inner.{part}", bias=kind.bias)
        builder.point(values, abouts[part])
        builder.scale(f"{stage}.{part}_scale", values, factor, f"{abouts[part]}, times a factor")
        parts[part] = values
    for part, noun in nouns.items():
        conv, bias = f"{stage}.{part}_conv", kind.conv_bias
        parts[part] = convolve(builder, conv, parts[part], kind.taps, state, part, bias=bias, silu=True)
        builder.point(parts[part], f"{noun}, after the convolution")
    steps, decay = decays(builder, stage, parts["step"], kind.limits)
    scanned = scan(
        builder,
        stage,
        shape,
        state,
        q=regroup(builder, f"{stage}.c_groups", parts["c"], kind.groups, kind.state, shape.key_dim),
        k=regroup(builder, f"{stage}.b_groups", parts["b"], kind.groups, kind.state, shape.key_dim),
        v=regroup(builder, f"{stage}.x_heads", parts["x"], kind.heads, kind.head_dim, shape.value_dim),
        decays=decay,
        factors=steps,
        skip=True,
        delta=False,
        width=kind.head_dim,
    )
    scanned = regroup(builder, f"{stage}.heads", scanned, kind.heads, shape.value_dim, kind.head_dim)
    if kind.norm and kind.norm_first:
        scanned = _group_norm(builder, f"{stage}.output_norm", kind, kind.norm, scanned)
    result = gated(builder, stage, "silu", parts["gate"], scanned, inner)
    if kind.norm and not kind.norm_first:
        result = _group_norm(builder, f"{stage}.output_norm", kind, kind.norm, result)
    width = builder.spec.embedding.width
    return builder.linear(f"{stage}.output", result, width, out, bias=kind.output_bias)


def _group_norm(builder: Builder, stage: str, kind: Mamba, norm_kind: Norm, x: str) -> str:
    """Normalize each group of x separately, with its own weights."""
    groups, each = kind.groups, kind.heads * kind.head_dim // kind.groups
    if groups == 1:
        return builder.point(norm(builder, stage, norm_kind, x), "the output of the heads, normalised")
    padded = round_up(each, ROWS)
    wide = regroup(builder, f"{stage}.groups", x, groups, each, padded)
    norm(builder, stage, norm_kind, wide, parts=groups, count=each, own_weights=True, letters="G D")
    builder.point(wide, "the output of the heads, normalised by group")
    return regroup(builder, f"{stage}.joined", wide, groups, padded, each)
