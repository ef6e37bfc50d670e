"""Embedding: token ids (T,) → vectors (T, D); a convolution over the embeddings of neighbouring tokens."""

from __future__ import annotations

from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.core.record import StepRecord
from pellucid.plan.builder import Builder
from pellucid.plan.feedforward import apply
from pellucid.plan.norm import norm
from pellucid.plan.plan import At, Value, Vector, Weights

RESIDUAL = "x"
"""The name of the residual stream's buffer."""


def lookup(
    builder: Builder,
    stage: str,
    slot: str,
    x: str,
    *,
    index: int,
    factor: float = 1.0,
    add: bool = False,
    limit: int = 0,
) -> str:
    """Look up rows of a table: x = factor * table[index], or x += factor * table[index] with ``add``.

    ``index`` is the offset of a field in the step's record. If ``limit`` is not 0, indices >= ``limit`` mean row 0.
    """
    width, packed = builder.width_of(x), builder.layouts[slot]
    # A matrix that is also multiplied is packed.
    by_row = packed.is_float and builder.spec.head is None
    fields: dict[str, Value] = {"weights": Vector(slot) if by_row else Weights(slot), "width": width, "out": At(x)}
    fields |= {"index": index, "factor": factor, "accumulate": int(add), "limit": limit}
    kernel = KernelKey("embedding_rows") if by_row else KernelKey("embedding", packed=packed)
    builder.emit(stage, kernel, fields, (x,) if add else (), (x,), f"(T,) → (T, {width})")
    return x


def embed(builder: Builder) -> str:
    """Emit the token embeddings. Returns the buffer of the residual stream."""
    embedding = builder.spec.embedding
    x = builder.buffer(RESIDUAL, embedding.width)
    row = builder.buffer("narrow", embedding.narrow) if embedding.narrow else x
    stage = builder.named("embed")
    lookup(builder, stage, f"{stage}.weight", row, index=StepRecord.at.token_ids, factor=embedding.scale)
    builder.point(row, "the token's row of the embedding matrix")
    if embedding.narrow and not embedding.narrow_sum:
        row = _widen(builder, row)
    if embedding.types:
        types = f"{stage}.types"
        lookup(builder, types, f"{types}.weight", row, index=StepRecord.at.token_types, add=True)
        builder.point(row, "the embedding, with the vector of the token's type added")
    if embedding.tasks:
        # With the limit 1, every index means row 0, the task that transformers assumes.
        tasks = f"{stage}.tasks"
        lookup(builder, tasks, f"{tasks}.weight", row, index=StepRecord.at.token_types, add=True, limit=1)
        builder.point(row, "the embedding, with the vector of the first task added")
    return _norm(builder, row) if embedding.norm_first else row


def embedding_norm(builder: Builder, x: str) -> str:
    """Normalize the sum of token, type and position vectors, if the model has this norm, and widen a narrow sum."""
    embedding = builder.spec.embedding
    if embedding.norm_last:
        x = _widen(builder, x)
    if not embedding.norm_first:
        x = _norm(builder, x)
    return _widen(builder, x) if embedding.narrow_sum and not embedding.norm_last else x


def question_type(builder: Builder, layer: int, x: str) -> None:
    """Normalize the residual stream and add the vector of the type of the question, before the first decision block."""
    decision = builder.spec.decision
    if decision is None or layer != len(builder.spec.blocks) - decision.count:
        return
    norm(builder, "decision.norm", decision.norm, x)
    builder.point(x, "the vectors of the encoder, normalised")
    lookup(builder, "decision.types", "decision.types.weight", x, index=StepRecord.at.token_types, add=True)
    builder.point(x, "the vectors of the encoder, with the vector of the type of the question added")


def _norm(builder: Builder, x: str) -> str:
    if builder.spec.embedding.norm:
        norm(builder, builder.named("embed.norm"), builder.spec.embedding.norm, x)
        builder.point(x, "the normalised sum of the token's vectors")
    return x


def _widen(builder: Builder, row: str) -> str:
    embedding = builder.spec.embedding
    bias = embedding.narrow_sum and not embedding.norm_last
    x = builder.linear(builder.named("embed.widen"), row, embedding.width, RESIDUAL, bias=bias)
    return builder.point(x, "the embedding, projected to the width of the model")


# A convolution over neighbouring tokens of the embeddings, whose output is added after the first block.

OUT = "convolved"


def convolution(builder: Builder, x: str) -> None:
    """Compute the convolution of the embeddings x, before the blocks change x, if the model has a convolution."""
    kind = builder.spec.convolution
    if not kind:
        return
    width = builder.count_of(x)
    joined = builder.buffer("neighbours", kind.taps * width)
    fields: dict[str, Value] = {"x": At(x), "x_stride": 4 * builder.width_of(x), "width": width, "taps": kind.taps}
    fields |= {"out": At(joined), "out_stride": 4 * builder.width_of(joined)}
    shape = f"(T, {width}) → (T, {kind.taps * width})"
    builder.emit("convolution.neighbours", "neighbours", fields, (x,), (joined,), shape)
    builder.linear("convolution", joined, width, OUT, bias=True)
    builder.point(OUT, "the convolution of the embeddings over neighbouring tokens")
    if kind.activation:
        apply(builder, "convolution.activation", kind.activation, OUT, "", f"(T, {width})")
        builder.point(OUT, "the convolution of the embeddings, after its activation")


def add_convolution(builder: Builder, x: str) -> None:
    """Add the convolution to the output x of the first block, and normalize the sum."""
    builder.add("convolution.residual", x, OUT)
    builder.point(x, "the output of the first block and the convolution")
    norm(builder, "convolution.norm", builder.spec.blocks[0].norm, x)
