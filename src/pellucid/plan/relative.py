"""Relative positions with vectors of their own: their keys and queries, which the setup of a plan computes."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

from pellucid.errors import UnsupportedModel
from pellucid.kernels.attention.position_tables import key_bytes, query_bytes
from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.core.record import StepRecord
from pellucid.kernels.matmul.quantize import MAX_ACTIVATION_BITS
from pellucid.model.positions import RelativePositions
from pellucid.model.spec import Attention
from pellucid.plan.builder import Builder
from pellucid.plan.embedding import lookup
from pellucid.plan.heads import regroup
from pellucid.plan.norm import norm
from pellucid.plan.plan import At, BucketTable, Operation, ScoreBias, Value
from pellucid.runtime.cache_layout import LayerShape

EMBEDDING = "relative"
"""The buffer of the vectors of relative positions in the setup."""


def relative_embedding(builder: Builder) -> None:
    """Begin the setup with the vectors of relative positions (R, D), if the model has them."""
    relative = builder.spec.relative
    if not relative:
        return
    # The setup runs once, so exact activations cost little.
    setup = Builder(builder.spec, builder.layouts, MAX_ACTIVATION_BITS, builder.kv_dtype)
    builder.setup, builder.setup_rows = setup, relative.buckets
    x = setup.buffer(EMBEDDING, builder.spec.embedding.width)
    lookup(setup, "relative", "relative.weight", x, index=StepRecord.at.positions)
    if relative.norm:
        norm(setup, "relative.norm", relative.norm, x)


def position_scores(
    builder: Builder, stage: str, kind: Attention, relative: RelativePositions, shape: LayerShape
) -> Mapping[str, Value]:
    """The fields of disentangled attention beside the fields of attention. The setup computes their tables.

    Raises:
        UnsupportedModel: distances have buckets that the attention kernel does not support.
    """
    fields: dict[str, Value] = {"position_keys": 0, "position_queries": 0, "bucket_count": relative.buckets}
    for part, present, bias in (("k", relative.keys, relative.key_bias), ("q", relative.queries, True)):
        if present:
            if relative.shared:
                bias = kind.bias and (part == "q" or kind.key_bias)
            table = _position_table(builder, stage, kind, relative, shape, part, bias)
            fields["position_keys" if part == "k" else "position_queries"] = At(table)
    return fields | {"buckets": ScoreBias(_bucket_table(builder, stage, relative))}


def _position_table(
    builder: Builder,
    stage: str,
    kind: Attention,
    relative: RelativePositions,
    shape: LayerShape,
    part: str,
    bias: bool,
) -> str:
    """The table of the buckets' keys ("k") or queries ("q") of a block."""
    setup = builder.setup
    assert setup
    step = f"{stage}.position_{part}"
    slot = f"{stage}.{part}" if relative.shared else step
    x = setup.linear(step, EMBEDDING, kind.heads * kind.head_dim, f"relative.{part}", bias=bias, slot=slot)
    x = regroup(setup, f"{step}_heads", x, kind.heads, kind.head_dim, shape.head_dim)
    kernel, sizes = "position_queries", (relative.buckets, kind.heads, shape.head_dim)
    nbytes = query_bytes(*sizes)
    if part == "k":
        kernel, nbytes = "position_keys", key_bytes(shape.kv_dtype, *sizes)
    for owner in (setup, builder):
        owner.buffer(f"{step}.table", nbytes // 4, "once")
    fields: dict[str, Value] = {
        "x": At(x),
        "heads": kind.heads,
        "head_dim": shape.head_dim,
        "scale": kind.scale,
        "out": At(f"{step}.table"),
    }
    printed = f"({relative.buckets}, {kind.heads}, {kind.head_dim})"
    key = KernelKey(kernel, kv_dtype=shape.kv_dtype)
    setup.emit(Operation(f"{step}_table", key, fields, (x,), (f"{step}.table",), printed))
    return f"{step}.table"


def _bucket_table(builder: Builder, stage: str, relative: RelativePositions) -> str:
    """Add the table of buckets to the plan. Returns its name."""
    name = f"buckets.{relative.span}.{relative.longest}"
    if name not in builder.tables:
        table = builder.tables[name] = BucketTable(relative, builder.spec.context)
        # Attention has memory for at most as many buckets as distances.
        if any(before - after > 1 for before, after in pairwise(table.values().tolist())):
            raise UnsupportedModel(
                f"{stage}: position_buckets is {relative.span}, and max_relative_positions {relative.longest}: a "
                f"distance skips a bucket; the positions must be at least {3 * relative.span // 2}"
            )
    return name
