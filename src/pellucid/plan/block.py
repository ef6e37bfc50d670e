"""A transformer block: attention or a recurrent layer, then feed-forward, each with norms and a residual addition."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

from msgspec import Struct

from pellucid.errors import UnsupportedModel
from pellucid.kernels.core.record import StepRecord
from pellucid.kernels.matmul.layouts import ROWS, round_up
from pellucid.model.spec import AltUp, Block, FeedForward, Mixture, PerLayer
from pellucid.plan.attention import attention, cross_attention
from pellucid.plan.builder import Builder
from pellucid.plan.embedding import add_convolution, lookup
from pellucid.plan.feedforward import apply, feedforward, mixture
from pellucid.plan.norm import norm, place, regroup
from pellucid.plan.plan import At, Value, Vector

# Per-layer embeddings (Gemma Team 2025, Gemma 3n): a token has a vector for each block.
#
# The vectors of all blocks are computed together, before the first block.


def per_layer_embeddings(builder: Builder, x: str) -> None:
    """Compute the vectors of all blocks, (T, L P), from the token ids and the embedding x."""
    kind, layers = builder.spec.per_layer, len(builder.spec.blocks)
    if kind is None:
        return
    vectors = builder.buffer("per_layer", layers * kind.width)
    builder.linear("per_layer.project", x, layers * kind.width, vectors)
    builder.point(vectors, "the vectors of all layers, projected from the embedding")
    builder.scale(
        "per_layer.project_scale",
        vectors,
        kind.projection_scale,
        "the vectors of all layers, projected from the embedding, times a factor",
    )
    norm_kind = builder.spec.blocks[0].norm
    # norm needs each part padded to whole SIMD vectors.
    padded = round_up(kind.width, ROWS)
    parts = regroup(builder, "per_layer.parts", vectors, layers, kind.width, padded)
    slot, letters = "per_layer.norm", "L P"
    norm(builder, slot, norm_kind, parts, parts=layers, count=kind.width, letters=letters)
    builder.point(parts, "the vectors of all layers, projected from the embedding, normalised by layer")
    table = builder.buffer("per_layer.table", layers * kind.width)
    slot, index = "per_layer.embed", StepRecord.at.token_ids
    lookup(builder, slot, f"{slot}.weight", table, index=index, factor=kind.scale, limit=kind.vocabulary)
    builder.point(table, "the token's row of the matrix of embeddings of all layers")
    if parts != vectors:
        place(builder, "per_layer.join", parts, layers, padded, vectors, kind.width)
    builder.add("per_layer.sum", vectors, table)
    builder.point(vectors, "the embeddings of all layers: the projected vectors plus the token's row")
    builder.scale("per_layer.sum_scale", vectors, kind.sum_scale, "the embeddings of all layers, times a factor")


def per_layer_block(builder: Builder, layer: int, kind: PerLayer, block: Block, x: str) -> str:
    """out = norm(project(f(gate x) * per-layer embedding of this block)), without the residual addition."""
    stage = f"blocks.{layer}.per_layer"
    gate = builder.linear(f"{stage}.gate", x, kind.width, "per_layer.gate", letters="P")
    builder.point(gate, "the gate of the layer's embedding, before the activation")
    embedding = builder.buffer("per_layer.own", kind.width)
    place(builder, f"{stage}.vector", "per_layer", 1, kind.width, embedding, kind.width, start=layer * kind.width)
    apply(builder, f"{stage}.hidden", kind.activation, gate, embedding, f"(T, {kind.width})")
    builder.point(gate, "the layer's embedding, gated")
    out = builder.linear(f"{stage}.project", gate, builder.count_of(x), "out")
    builder.point(out, "the layer's gated embedding, projected to the width of the model")
    norm(builder, f"{stage}.norm", block.norm, out)
    return builder.point(out, "the layer's gated embedding, as it is added to the residual stream")


def block_scalar(builder: Builder, layer: int, x: str) -> None:
    """Multiply x by the scalar weight of the block."""
    stage = f"blocks.{layer}.scalar"
    builder.in_place(stage, "scale_by", x, factor=Vector(f"{stage}.weight"))
    builder.point(x, "the residual stream, times the block's scalar")


# Several residual streams (AltUp), and a learned residual beside attention (Laurel).
#
# A block computes only the active stream. All streams are predicted before the block, and corrected after the block.
# (Baykal et al. 2023, AltUp; Gemma Team 2025, Gemma 3n)

STREAMS, PREDICTED = "streams", "predicted"


def spread_streams(builder: Builder, x: str) -> None:
    """Create the streams (T, S, D): the embedding, and projections of the embedding, scaled to its RMS."""
    kind = builder.spec.altup
    if kind is None:
        return
    width, whole = builder.count_of(x), kind.streams * builder.width_of(x)
    streams = builder.buffer(STREAMS, whole)
    place(builder, "altup.0.place", x, 1, width, streams, whole)
    for stream in range(1, kind.streams):
        at = f"altup.{stream}"
        projected = builder.linear(f"{at}.project", x, width, "projected")
        builder.point(projected, "the embedding, projected for this stream")
        _match(builder, f"{at}.match", projected, x)
        place(builder, f"{at}.place", projected, 1, width, streams, whole, offset=stream * builder.width_of(x))
    _view(builder, kind, streams, x)


def join_streams(builder: Builder, streams: str) -> str:
    """Join the picked streams (R, S, D) to (R, D): the mean of the first stream and the projected other streams."""
    kind, width = builder.spec.altup, builder.spec.embedding.width
    assert kind is not None
    rows, stride = builder.buffers[streams].rows, builder.width_of(streams) // kind.streams
    first, total = builder.buffer("first", width, rows), builder.buffer("joined", width, rows)
    for to in (first, total):
        place(builder, f"altup.0.{to}", streams, 1, width, to, width, letters="D")
    for stream in range(1, kind.streams):
        at, picked = f"altup.{stream}", builder.buffer("stream", width, rows)
        place(builder, f"{at}.take", streams, 1, width, picked, width, start=stream * stride, letters="D")
        unembedded = builder.linear(f"{at}.unembed", picked, width, "unembedded")
        builder.point(unembedded, "this stream after the last block, projected")
        _match(builder, f"{at}.unembed_match", unembedded, first)
        builder.add(f"{at}.join", total, unembedded)
        builder.point(total, "the sum of the streams up to this stream")
    return builder.scale("altup.mean", total, 1 / kind.streams, "the mean of the streams")


def predict(builder: Builder, layer: int, kind: AltUp, x: str) -> None:
    """Predict all streams before a block. x becomes the prediction of the active stream."""
    stage, width = f"blocks.{layer}.altup", builder.count_of(x)
    stride = builder.width_of(x)
    place(builder, f"{stage}.active", STREAMS, 1, width, x, width, start=kind.active * stride, letters="D")
    coefs = _coefficients(builder, f"{stage}.predict", stage, kind, x, kind.streams**2)
    builder.buffer(PREDICTED, kind.streams * stride)
    _view(builder, kind, PREDICTED, x)
    fields = _fields(builder, kind, x, coefs) | {"predicted": At(PREDICTED), "active": kind.active}
    _emit(builder, f"{stage}.predicted", "streams_predict", fields, (STREAMS, coefs), (PREDICTED, x))
    builder.point(PREDICTED, "all residual streams as predicted before the block")


def correct(builder: Builder, layer: int, kind: AltUp, x: str) -> str:
    """Correct all streams after a block, by the change that the block made. Returns the scaled active stream."""
    stage, width = f"blocks.{layer}.altup", builder.count_of(x)
    coefs = _coefficients(builder, f"{stage}.correct", stage, kind, x, kind.streams)
    out = builder.buffer("corrected", width)
    fields = _fields(builder, kind, x, coefs) | {"predicted": At(PREDICTED), "active": kind.active, "out": At(out)}
    fields["scale"] = Vector(f"{stage}.scale.weight") if kind.scaled else 0
    _emit(builder, f"{stage}.corrected", "streams_correct", fields, (PREDICTED, coefs, x), (STREAMS, out))
    builder.point(STREAMS, "all residual streams, corrected by the change that the block made")
    return out


def spread(builder: Builder, layer: int, kind: AltUp, x: str) -> None:
    """Add x to all streams except the first."""
    fields = _fields(builder, kind, x)
    _emit(builder, f"blocks.{layer}.altup.spread", "streams_spread", fields, (STREAMS, x), (STREAMS,))
    builder.point(STREAMS, "all residual streams after the per-layer embedding")


def laurel(builder: Builder, layer: int, kind: Block, normed: str, x: str) -> None:
    """x = (x + normed + norm(right(left(normed)))) / sqrt(2): a learned low-rank residual beside attention."""
    stage, width = f"blocks.{layer}.laurel", builder.count_of(x)
    low = builder.linear(f"{stage}.left", normed, kind.laurel, "laurel.low")
    builder.point(low, "the input of attention, projected to the low rank")
    out = builder.linear(f"{stage}.right", low, width, "laurel")
    builder.point(out, "the learned residual, projected back to the width of the model")
    norm(builder, f"{stage}.norm", kind.norm, out)
    builder.point(out, "the learned residual, normalised")
    builder.add(f"{stage}.sum", out, normed)
    builder.point(out, "the learned residual, with the input of attention added")
    builder.add(f"{stage}.residual", x, out)
    builder.point(x, "the residual stream with the learned residual added")
    builder.scale(
        f"{stage}.scale", x, 2**-0.5, "the residual stream with the learned residual, divided by the square root of 2"
    )


def _view(builder: Builder, kind: AltUp, streams: str, x: str) -> None:
    """Declare the view (S, D) of a buffer of all streams, each as wide as ``x``."""
    builder.view(streams, "S D", kind.streams, builder.count_of(x), builder.width_of(x))


def _coefficients(builder: Builder, slot: str, stage: str, kind: AltUp, x: str, count: int) -> str:
    """The coefficients (T, ``count``) of a prediction or a correction, computed from the active stream."""
    norm_kind, router = builder.spec.blocks[0].norm, f"{stage}.router"
    routed = norm(builder, f"{slot}_norm", norm_kind, x, "altup.normed", slot=f"{router}_norm")
    builder.point(routed, "the active stream, normalised")
    routes = builder.linear(f"{slot}_router", routed, kind.streams, "modalities", slot=router)
    builder.point(routes, "the scores of the streams")
    builder.scale(
        f"{slot}_scale", routes, 1 / builder.spec.embedding.width, "the scores of the streams, divided by the width"
    )
    builder.softcap(f"{slot}_tanh", routes, 1.0)
    builder.point(routes, "the scores of the streams, after a tanh")
    coefs = builder.linear(slot, routes, count, "coefs")
    return builder.point(coefs, "the coefficients that mix the streams")


def _fields(builder: Builder, kind: AltUp, x: str, coefs: str = "") -> dict[str, Value]:
    width, count = builder.width_of(x), kind.streams
    own: dict[str, Value] = {"coefs": At(coefs), "coefs_stride": 4 * builder.width_of(coefs)} if coefs else {}
    return {"streams": At(STREAMS), "width": width, "count": count, "x": At(x), **own}


def _match(builder: Builder, stage: str, x: str, like: str) -> None:
    """Scale each row of x to the RMS of the same row of ``like``."""
    builder.in_place(stage, "streams_match", x, like, like=At(like), count=builder.count_of(x))
    builder.point(x, "the projection, scaled to the length of the first stream")


def _emit(
    builder: Builder, stage: str, kernel: str, fields: dict[str, Value], reads: tuple[str, ...], writes: tuple[str, ...]
) -> None:
    shape = f"(T, {fields['count']}, {fields['width']})"
    builder.emit(stage, kernel, fields, reads, writes, shape)


Inside: TypeAlias = Callable[[str, str], str]
"""(input, output buffer) → output."""


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
        from pellucid.plan.recurrent import RECURRENT  # few models need it

        stage = builder.named(f"blocks.{layer}.recurrent")
        scale = kind.residual_scale * getattr(kind.recurrent, "output_scale", 1.0)
        inside = partial(RECURRENT[type(kind.recurrent)], builder, stage, kind.recurrent)
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
