"""Per-layer embeddings (Gemma Team 2025, Gemma 3n): a token has a vector for each block.

The vectors of all blocks are computed together, before the first block.
"""

from __future__ import annotations

from pellucid.kernels.core.record import StepRecord
from pellucid.kernels.matmul.packed_layout import ROWS, round_up
from pellucid.model.spec import Block, PerLayer
from pellucid.plan.builder import Builder
from pellucid.plan.embedding import lookup
from pellucid.plan.feedforward import apply
from pellucid.plan.heads import place, regroup
from pellucid.plan.norm import norm
from pellucid.plan.plan import Vector


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
    builder.scale(
        "per_layer.sum_scale", vectors, kind.sum_scale, "the embeddings of all layers, times a factor"
    )


def per_layer_block(builder: Builder, layer: int, kind: PerLayer, block: Block, x: str) -> str:
    """out = norm(project(f(gate x) * per-layer embedding of this block)), without the residual addition."""
    stage = f"blocks.{layer}.per_layer"
    gate = builder.linear(f"{stage}.gate", x, kind.width, "per_layer.gate", letters="P")
    builder.point(gate, "the gate of the layer's embedding, before the activation")
    embedding = builder.buffer("per_layer.own", kind.width)
    place(
        builder,
        f"{stage}.vector",
        "per_layer",
        1,
        kind.width,
        embedding,
        kind.width,
        start=layer * kind.width,
    )
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
