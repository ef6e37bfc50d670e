"""A transformer block: attention, then feed-forward, each with its norms and added to the residual stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from pellucid.model.spec import Block, FeedForward, Mixture
from pellucid.plan.attention import attention
from pellucid.plan.builder import Builder
from pellucid.plan.feedforward import feedforward
from pellucid.plan.mixture import mixture
from pellucid.plan.norm import norm

Sublayer: TypeAlias = Callable[[str, str], str]
"""(input, output buffer) → output: attention or feed-forward."""


def block(builder: Builder, layer: int, kind: Block, x: str) -> str:
    """Update x to the block's output."""
    sublayers: dict[str, Sublayer] = {
        f"blocks.{layer}.attention": lambda i, o: attention(builder, layer, kind.attention, i, o),
        f"blocks.{layer}.feedforward": lambda i, o: _feedforward(builder, layer, kind.feedforward, i, o),
    }
    if kind.placement in ("parallel", "shared"):
        return _parallel(builder, kind, x, sublayers)
    for stage, inside in sublayers.items():
        _sequential(builder, stage, kind, x, inside)
    return x


def _feedforward(builder: Builder, layer: int, kind: FeedForward | Mixture, x: str, out: str) -> str:
    stage = f"blocks.{layer}.feedforward"
    if isinstance(kind, Mixture):
        return mixture(builder, stage, kind, x, out)
    return feedforward(builder, stage, kind, x, out)


def _sequential(builder: Builder, stage: str, kind: Block, x: str, inside: Sublayer) -> None:
    """x = x + inside(x), with the norms in the places that the block's ``placement`` states."""
    before = x
    if kind.placement in ("pre", "sandwich"):
        before = norm(builder, f"{stage}.norm", f"{stage}.norm", kind.norm, x, "normed")
    out = inside(before, builder.buffer("out", builder.count_of(x)))
    if kind.placement in ("sandwich", "output"):
        norm(builder, f"{stage}.post_norm", f"{stage}.post_norm", kind.norm, out, out)
    builder.add(f"{stage}.residual", x, out, kind.residual_scale)
    if kind.placement == "post":
        norm(builder, f"{stage}.norm", f"{stage}.norm", kind.norm, x, x)


def _parallel(builder: Builder, kind: Block, x: str, sublayers: Mapping[str, Sublayer]) -> str:
    """x = x + attention(norm(x)) + feedforward(norm(x)): all norms come before x changes."""
    first, second = sublayers
    normed = norm(builder, f"{first}.norm", f"{first}.norm", kind.norm, x, "normed")
    inputs = {first: normed, second: normed}
    if kind.placement == "parallel":
        inputs[second] = norm(builder, f"{second}.norm", f"{second}.norm", kind.norm, x, "normed1")
    for stage, inside in sublayers.items():
        out = inside(inputs[stage], builder.buffer("out", builder.count_of(x)))
        builder.add(f"{stage}.residual", x, out, kind.residual_scale)
    return x
