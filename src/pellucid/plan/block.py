"""A transformer block: attention or a recurrent layer, then feed-forward, each with norms and a residual addition."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from msgspec import Struct

from pellucid.errors import UnsupportedModel
from pellucid.model.spec import Block, FeedForward, Mixture
from pellucid.plan.attention import attention
from pellucid.plan.builder import Builder
from pellucid.plan.feedforward import feedforward
from pellucid.plan.mixture import mixture
from pellucid.plan.norm import norm
from pellucid.plan.per_layer import block_scalar, per_layer_block
from pellucid.plan.recurrent.layer import recurrent
from pellucid.plan.streams import correct, laurel, predict, spread

Inside: TypeAlias = Callable[[str, str], str]
"""(input, output buffer) → output."""

PARALLEL = ("parallel", "shared")
"""Placements with which attention and feed-forward read the same residual stream."""


class Sublayer(Struct, frozen=True):
    """Attention, a recurrent layer or a feed-forward: its stage, its function, and the factor of its output."""

    stage: str
    inside: Inside
    scale: float


def block(builder: Builder, layer: int, kind: Block, x: str) -> str:
    """Update x to the output of the block."""
    groups = [
        group for group in (_mixers(builder, layer, kind), _feedforwards(builder, layer, kind, x)) if group
    ]
    if kind.placement in PARALLEL:
        return _parallel(builder, kind, x, groups)
    altup, per_layer, seen = builder.spec.altup, builder.spec.per_layer, x
    if altup:
        predict(builder, layer, altup, x)
    for number, group in enumerate(groups):
        before = _sequential(builder, kind, x, group)
        if kind.laurel and number == 0:
            laurel(builder, layer, kind, before, x)
    if altup:
        seen = correct(builder, layer, altup, x)
    if per_layer:
        out = per_layer_block(builder, layer, per_layer, kind, seen)
        if altup:
            spread(builder, layer, altup, out)
        else:
            builder.add(f"blocks.{layer}.per_layer.residual", x, out)
    if kind.scalar:
        block_scalar(builder, layer, x)
    return x


def _mixers(builder: Builder, layer: int, kind: Block) -> list[Sublayer]:
    """Attention and the recurrent layer of a block. If the block has both, they read the same input."""
    found, at = [], f"blocks.{layer}"
    if (attending := kind.attention) is not None:
        scale = kind.residual_scale * attending.output_scale
        inside: Inside = lambda i, o: attention(builder, layer, attending, i, o)  # noqa: E731
        found.append(Sublayer(f"{at}.attention", inside, scale))
    if (state := kind.recurrent) is not None:
        scale = kind.residual_scale * getattr(state, "output_scale", 1.0)
        found.append(Sublayer(f"{at}.recurrent", lambda i, o: recurrent(builder, layer, state, i, o), scale))
    return found


def _feedforwards(builder: Builder, layer: int, kind: Block, x: str) -> list[Sublayer]:
    inner, stage = kind.feedforward, f"blocks.{layer}.feedforward"
    if isinstance(inner, Mixture):
        return [Sublayer(stage, lambda i, o: mixture(builder, stage, inner, i, o, x), kind.residual_scale)]
    if isinstance(inner, FeedForward):
        scale = kind.residual_scale * inner.output_scale
        # The last feed-forward computes only the output rows (passes.py), so finer activations cost little.
        last = builder.spec.head is not None and layer == len(builder.spec.blocks) - 1
        bits = builder.fine_bits if last and kind.placement not in PARALLEL else 0
        return [Sublayer(stage, lambda i, o: feedforward(builder, stage, inner, i, o, bits), scale)]
    return []


def _sequential(builder: Builder, kind: Block, x: str, group: list[Sublayer]) -> str:
    """x = x + inside(x), with norms as the ``placement`` of the block states.

    The sublayers of a group read the same norm of x. Returns the buffer that they read.
    """
    first, before = group[0].stage, x
    if len(group) > 1 and kind.placement != "pre":
        raise UnsupportedModel(
            f"{first}: a recurrent layer beside it needs norms before, not {kind.placement!r}"
        )
    if kind.placement in ("pre", "sandwich"):
        before = norm(builder, f"{first}.norm", f"{first}.norm", kind.norm, x, "normed")
    for one in group:
        out = one.inside(before, builder.buffer("out", builder.count_of(x)))
        if kind.placement in ("sandwich", "output"):
            norm(builder, f"{one.stage}.post_norm", f"{one.stage}.post_norm", kind.norm, out, out)
        builder.add(f"{one.stage}.residual", x, out, one.scale)
    if kind.placement == "post":
        norm(builder, f"{first}.norm", f"{first}.norm", kind.norm, x, x)
    return before


def _parallel(builder: Builder, kind: Block, x: str, groups: list[list[Sublayer]]) -> str:
    """x = x + attention(norm(x)) + feedforward(norm(x)). All norms are computed before x changes."""
    inputs, normed = [], ""
    for number, group in enumerate(groups):
        if not normed or kind.placement == "parallel":
            at, to = f"{group[0].stage}.norm", f"normed{number or ''}"
            normed = norm(builder, at, at, kind.norm, x, to)
        inputs += [(one, normed) for one in group]
    for one, normed in inputs:
        out = one.inside(normed, builder.buffer("out", builder.count_of(x)))
        builder.add(f"{one.stage}.residual", x, out, one.scale)
    return x
