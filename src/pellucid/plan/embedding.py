"""Embedding: token ids (T,) → vectors (T, D)."""

from __future__ import annotations

from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.core.record import StepRecord
from pellucid.plan.builder import Builder
from pellucid.plan.norm import norm
from pellucid.plan.plan import At, Operation, Value, Weights

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

    ``index`` is the offset of a field in the step's record, or -1 for row 0. If ``limit`` is not 0, indices >=
    ``limit`` mean row 0.
    """
    width, packed = builder.width_of(x), builder.layouts[slot]
    fields: dict[str, Value] = {
        "weights": Weights(slot),
        "width": width,
        "index": index,
        "factor": factor,
        "accumulate": int(add),
        "limit": limit,
        "out": At(x),
    }
    kernel = KernelKey("embedding", packed=packed)
    builder.emit(Operation(stage, kernel, fields, (x,) if add else (), (x,), f"(T,) → (T, {width})"))
    return x


def embed(builder: Builder) -> str:
    """Emit the token embeddings. Returns the buffer of the residual stream."""
    embedding = builder.spec.embedding
    x = builder.buffer(RESIDUAL, embedding.width)
    row = builder.buffer("narrow", embedding.narrow) if embedding.narrow else x
    stage = builder.named("embed")
    lookup(builder, stage, f"{stage}.weight", row, index=StepRecord.at.token_ids, factor=embedding.scale)
    builder.point(row, "the token's row of the embedding matrix")
    if embedding.narrow:
        builder.linear(f"{stage}.widen", row, embedding.width, x)
        builder.point(x, "the embedding, projected to the width of the model")
    if embedding.types:  # a text is a single segment, so every token has type 0
        lookup(builder, f"{stage}.types", f"{stage}.types.weight", x, index=-1, add=True)
        builder.point(x, "the embedding, with the vector of the token's type added")
    return _norm(builder, x) if embedding.norm_first else x


def embedding_norm(builder: Builder, x: str) -> str:
    """Normalize the sum of token, type and position vectors, if the model has this norm (BERT)."""
    return x if builder.spec.embedding.norm_first else _norm(builder, x)


def _norm(builder: Builder, x: str) -> str:
    if builder.spec.embedding.norm:
        norm(builder, builder.named("embed.norm"), builder.spec.embedding.norm, x)
        builder.point(x, "the normalised sum of the token's vectors")
    return x
