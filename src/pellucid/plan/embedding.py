"""Tokens to vectors: (T,) ids → (T, D)."""

from __future__ import annotations

from pellucid.errors import UnsupportedModel
from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.core.record import StepRecord
from pellucid.kernels.matmul.packed_layout import ROWS
from pellucid.plan.builder import Builder
from pellucid.plan.norm import norm
from pellucid.plan.plan import At, Operation, Value, Weights


def lookup(
    plan: Builder, stage: str, slot: str, x: str, *, index: int, factor: float = 1.0, add: bool = False
) -> str:
    """Look up rows of a table: x = factor * table[index], or added to x.

    ``index`` is a field of the step, or -1 for row 0.
    """
    width, packed = plan.width_of(x), plan.layouts[slot]
    fields: dict[str, Value] = {
        "weights": Weights(slot),
        "width": width,
        "index": index,
        "factor": factor,
        "accumulate": int(add),
        "out": At(x),
    }
    kernel = KernelKey("embedding", packed=packed)
    plan.emit(Operation(stage, kernel, fields, (x,) if add else (), (x,), f"(T,) → (T, {width})"))
    return x


def embed(plan: Builder) -> str:
    """The first value of the residual stream: token embeddings, scaled.

    Raises:
        UnsupportedModel: D is not a whole number of vectors.
    """
    embedding = plan.spec.embedding
    if embedding.width % ROWS:
        raise UnsupportedModel(f"a model of width {embedding.width}; it must be a multiple of {ROWS}")
    x = plan.buffer("x", embedding.width)
    lookup(plan, "embed", "embed.weight", x, index=StepRecord.at.token_ids, factor=embedding.scale)
    if embedding.types:  # one segment: every token is of type 0
        lookup(plan, "embed.types", "embed.types.weight", x, index=-1, add=True)
    return x


def embedding_norm(plan: Builder, x: str) -> str:
    """Normalise the sum of token, type and position vectors, if the model does so (BERT)."""
    if plan.spec.embedding.norm:
        norm(plan, "embed.norm", "embed.norm", plan.spec.embedding.norm, x, x)
    return x
