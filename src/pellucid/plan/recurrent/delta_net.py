"""Gated DeltaNet: the state of each head predicts a token's value from its key, and is updated by the error.

(T, D) → (T, D). (Yang et al. 2024)
"""

from __future__ import annotations

from pellucid.kernels.matmul.packed_layout import ROWS, round_up
from pellucid.model.spec import DeltaNet, Norm
from pellucid.plan.builder import Builder
from pellucid.plan.cached_attention import NOUNS
from pellucid.plan.feedforward import apply
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

EPS = 1e-6  # added to the sum of squares of a query or key when it is scaled to length 1


def delta_net(builder: Builder, stage: str, kind: DeltaNet, x: str, out: str) -> str:
    """out = delta_net(x), without the residual addition."""
    keys, values = kind.key_heads * kind.key_dim, kind.heads * kind.value_dim
    shape = ScanShape(
        kind.heads,
        kind.key_heads,
        round_up(kind.key_dim, ROWS),
        round_up(kind.value_dim, ROWS),
        1 if kind.tiled else kind.heads // kind.key_heads,
    )
    state = add_state(
        builder,
        stage,
        q=convolution_values(kind.taps, keys),
        k=convolution_values(kind.taps, keys),
        v=convolution_values(kind.taps, values),
        memory=shape.values,
    )
    parts = {}
    for part, width, letters, heads in (
        ("q", keys, "G K", kind.key_heads),
        ("k", keys, "G K", kind.key_heads),
        ("v", values, "H V", kind.heads),
    ):
        projected = builder.linear(f"{stage}.{part}", x, width, part, letters=letters, parts=heads)
        builder.point(projected, f"{NOUNS[part]}, before the convolution")
        parts[part] = convolve(
            builder, f"{stage}.{part}_conv", projected, kind.taps, state, part,
            bias=False, silu=True, parts=heads,
        )  # fmt: skip
        builder.point(parts[part], f"{NOUNS[part]}, after the convolution")
    gate = builder.linear(f"{stage}.gate", x, values, "gate")
    builder.point(gate, GATE)
    beta = builder.linear(f"{stage}.beta", x, kind.heads, "beta")
    builder.point(beta, "the learning rate of each head (beta), before the sigmoid")
    step = builder.linear(f"{stage}.step", x, kind.heads, "step")
    builder.point(step, STEP)
    apply(builder, f"{stage}.beta_sigmoid", "sigmoid", beta, "", f"(T, {kind.heads})")
    builder.point(beta, "the learning rate of each head (beta)")
    _, decay = decays(builder, stage, step, (0.0, float("inf")))
    for part, heads, width, padded in (
        ("q", kind.key_heads, kind.key_dim, shape.key_dim),
        ("k", kind.key_heads, kind.key_dim, shape.key_dim),
        ("v", kind.heads, kind.value_dim, shape.value_dim),
    ):
        parts[part] = regroup(builder, f"{stage}.{part}_heads", parts[part], heads, width, padded)
    # x / sqrt(sum of squares + eps) is the RMS norm with eps / K, times K^-1/2. Queries are multiplied by K^-1/2 twice.
    length = Norm("rms", EPS / kind.key_dim, weight=False)
    for part, factor in (("q", 1 / kind.key_dim), ("k", kind.key_dim**-0.5)):
        norm(
            builder, f"{stage}.{part}_norm", length, parts[part],
            parts=kind.key_heads, count=kind.key_dim, factor=factor,
        )  # fmt: skip
        builder.point(parts[part], f"{NOUNS[part]}, scaled to a fixed length")
    scanned = scan(
        builder, stage, shape, state, q=parts["q"], k=parts["k"], v=parts["v"], decays=decay, factors=beta,
        skip=False, delta=True, width=kind.value_dim,
    )  # fmt: skip
    norm(builder, f"{stage}.head_norm", kind.norm, scanned, parts=kind.heads, count=kind.value_dim)
    builder.point(scanned, "the output of each head, normalised")
    scanned = regroup(builder, f"{stage}.heads", scanned, kind.heads, shape.value_dim, kind.value_dim)
    gated(builder, stage, "silu", gate, scanned, values)
    return builder.linear(f"{stage}.output", gate, builder.spec.embedding.width, out)
