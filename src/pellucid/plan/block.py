"""A transformer block: attention, then feed-forward, each with its norms and added to the residual stream."""

from __future__ import annotations

from collections.abc import Callable

from pellucid.model.spec import Block
from pellucid.plan.attention import attention
from pellucid.plan.builder import Builder
from pellucid.plan.feedforward import feedforward
from pellucid.plan.norm import norm


def block(builder: Builder, layer: int, kind: Block, x: str) -> str:
    """Update x to the block's output."""
    sublayer(
        builder,
        f"blocks.{layer}.attention",
        kind,
        x,
        lambda i, o: attention(builder, layer, kind.attention, i, o),
    )
    sublayer(
        builder,
        f"blocks.{layer}.feedforward",
        kind,
        x,
        lambda i, o: feedforward(builder, layer, kind.feedforward, i, o),
    )
    return x


def sublayer(builder: Builder, stage: str, kind: Block, x: str, inside: Callable[[str, str], str]) -> None:
    """x = x + inside(x), with the norms in the places that the block's ``placement`` states."""
    before = x
    if kind.placement in ("pre", "sandwich"):
        before = norm(builder, f"{stage}.norm", f"{stage}.norm", kind.norm, x, "normed")
    out = inside(before, builder.buffer("out", builder.width_of(x)))
    if kind.placement == "sandwich":
        norm(builder, f"{stage}.post_norm", f"{stage}.post_norm", kind.norm, out, out)
    builder.add(f"{stage}.residual", x, out)
    if kind.placement == "post":
        norm(builder, f"{stage}.norm", f"{stage}.norm", kind.norm, x, x)
