"""A transformer block: attention or a recurrent layer, then feed-forward, each with norms and a residual addition."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeAlias

from msgspec import Struct

from pellucid.errors import UnsupportedModel
from pellucid.model.spec import Block, DeltaNet, FeedForward, Mamba, Mixture, ShortConvolution
from pellucid.plan.attention import attention
from pellucid.plan.builder import Builder
from pellucid.plan.cached_attention import cross_attention
from pellucid.plan.embedding import add_convolution
from pellucid.plan.feedforward import feedforward, mixture
from pellucid.plan.norm import norm
from pellucid.plan.recurrent import delta_net, mamba, short_convolution
from pellucid.plan.streams import block_scalar, correct, laurel, per_layer_block, predict, spread

Inside: TypeAlias = Callable[[str, str], str]
"""(input, output buffer) → output."""

RECURRENT: Mapping[type, Callable[..., str]] = {DeltaNet: delta_net, Mamba: mamba, ShortConvolution: short_convolution}


class Sublayer(Struct, frozen=True):
    """Attention, a recurrent layer or a feed-forward of a block.

    ``inside`` appends its operations to the plan. ``scale`` multiplies its output before the residual addition.
    """

    name: str
    stage: str
    inside: Inside
    scale: float


def block(builder: Builder, layer: int, kind: Block, x: str) -> str:
    """Update x to the output of the block."""
    mixers, last = _mixers(builder, layer, kind), _feedforwards(builder, layer, kind, x)
    groups = [group for group in (mixers, _crossings(builder, layer, kind), last) if group]
    if kind.is_parallel:
        if kind.cross:
            raise UnsupportedModel(f"blocks.{layer}: cross attention needs norms one after the other")
        _parallel(builder, kind, x, groups)
    else:
        _sequential(builder, layer, kind, x, groups)
    if layer == 0 and builder.spec.convolution:
        add_convolution(builder, x)
    return builder.point(x, "the residual stream after the block", name=builder.named(f"blocks.{layer}.residual"))


def _mixers(builder: Builder, layer: int, kind: Block) -> list[Sublayer]:
    """The attention and the recurrent layer of a block, which read the same input."""
    sublayers = []
    if kind.attention is not None:
        stage, scale = (builder.named(f"blocks.{layer}.attention"), kind.residual_scale * kind.attention.output_scale)
        sublayers.append(Sublayer("attention", stage, partial(attention, builder, layer, kind.attention), scale))
    if kind.recurrent is not None:
        stage, inside = builder.named(f"blocks.{layer}.recurrent"), RECURRENT[type(kind.recurrent)]
        scale = kind.residual_scale * getattr(kind.recurrent, "output_scale", 1.0)
        inside = partial(inside, builder, stage, kind.recurrent)
        sublayers.append(Sublayer("the recurrent layer", stage, inside, scale))
    return sublayers


def _crossings(builder: Builder, layer: int, kind: Block) -> list[Sublayer]:
    if kind.cross is None:
        return []
    inside = partial(cross_attention, builder, layer, kind.cross)
    scale = kind.residual_scale * kind.cross.output_scale
    return [Sublayer("cross attention", f"blocks.{layer}.cross", inside, scale)]


def _feedforwards(builder: Builder, layer: int, kind: Block, x: str) -> list[Sublayer]:
    inner, name, stage = kind.feedforward, "the feed-forward", builder.named(f"blocks.{layer}.feedforward")
    if isinstance(inner, Mixture):
        inside = partial(mixture, builder, stage, inner, residual=x)
        return [Sublayer(name, stage, inside, kind.residual_scale)]
    if isinstance(inner, FeedForward):
        # The last feed-forward computes only picked rows (passes.py), so finer activations cost little.
        pooling = builder.spec.pooling
        generates = builder.spec.generates and builder.spec.head is not None
        few = generates or (pooling is not None and pooling.picks)
        last = few and layer == len(builder.spec.blocks) - 1
        bits = builder.sensitive_bits if last and not kind.is_parallel else 0
        first = builder.sensitive_bits if builder.spec.coarse else bits
        inside = partial(feedforward, builder, stage, inner, activation_bits=bits, first_bits=first)
        return [Sublayer(name, stage, inside, kind.residual_scale * inner.output_scale)]
    return []


def _sequential(builder: Builder, layer: int, kind: Block, x: str, groups: list[list[Sublayer]]) -> None:
    """Attention, then the feed-forward, then per-layer embeddings and a scalar in models that have them."""
    altup, per_layer, seen = builder.spec.altup, builder.spec.per_layer, x
    if altup:
        predict(builder, layer, altup, x)
    for number, group in enumerate(groups):
        before = _group(builder, kind, x, group)
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
            builder.point(x, "the residual stream after the per-layer embedding")
    if kind.scalar:
        block_scalar(builder, layer, x)


def _group(builder: Builder, kind: Block, x: str, group: list[Sublayer]) -> str:
    """x = x + the outputs of the sublayers, which all read the same norm of x. Returns the buffer that they read.

    The ``placement`` of the block determines the norms.
    """
    first, before = group[0], x
    if len(group) > 1 and kind.placement != "pre":
        raise UnsupportedModel(
            f"{first.stage}: with a recurrent layer beside attention, norms must have the placement 'pre', not "
            f"{kind.placement!r}"
        )
    if kind.placement in ("pre", "sandwich") and (kind.attention_norm or first.name != "attention"):
        before = _input_norm(builder, kind, first, x, "normed")
    for sublayer in group:
        _add_output(builder, kind, sublayer, before, x)
    if kind.placement == "post":
        norm(builder, f"{first.stage}.norm", kind.norm, x)
        builder.point(x, f"the residual stream after {first.name}, normalised")
    return before


def _parallel(builder: Builder, kind: Block, x: str, groups: list[list[Sublayer]]) -> None:
    """x = x + attention(norm(x)) + feedforward(norm(x)). All norms are computed before x changes."""
    inputs, normed = [], ""
    for number, group in enumerate(groups):
        if not normed or kind.placement == "parallel":
            normed = _input_norm(builder, kind, group[0], x, f"normed{number or ''}")
        inputs += [(sublayer, normed) for sublayer in group]
    for sublayer, normed in inputs:
        _add_output(builder, kind, sublayer, normed, x)


def _input_norm(builder: Builder, kind: Block, sublayer: Sublayer, x: str, out: str) -> str:
    stage = f"{sublayer.stage}.norm"
    norm(builder, stage, kind.norm, x, out)
    return builder.point(out, f"the input of {sublayer.name}, normalised")


def _add_output(builder: Builder, kind: Block, sublayer: Sublayer, seen: str, x: str) -> None:
    """x += the output of a sublayer for the input ``seen``."""
    name, stage = sublayer.name, sublayer.stage
    out = sublayer.inside(seen, builder.buffer("out", builder.count_of(x)))
    about = f"the output of {name}, before factors and norms"
    scaled = sublayer.scale != 1
    builder.point(out, about, name=f"{stage}.output", scaled=scaled)
    summed = kind.attention_post_norm and name == "attention"
    if summed:
        builder.add(f"{stage}.sum", out, x)
    if kind.norms_outputs or summed:
        norm(builder, f"{stage}.post_norm", kind.norm, out)
        builder.point(out, f"the output of {name}, normalised", scaled=scaled)
    builder.add(f"{stage}.residual", x, out, sublayer.scale)
    builder.point(x, f"the residual stream after {name}")
