"""Tables of relative positions for tests of disentangled attention."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from pellucid.kernels.attention import disentangled
from pellucid.kernels.core.definitions import KernelKey
from pellucid.model.positions import RelativePositions
from pellucid.plan.plan import BucketTable
from support.kernels import Batch, call, guarded, numbers


class Positions(NamedTuple):
    """Random keys and queries of buckets, (R, H, K) or None, and the fields of the attention kernel."""

    keys: np.ndarray | None
    queries: np.ndarray | None
    buckets: np.ndarray
    fields: dict[str, Any]


def positions(
    kind: RelativePositions, heads: int, width: int, kv_dtype: str, scale: float, context: int, seed: int
) -> Positions:
    """Keys and queries of all buckets, and the bucket of each distance from -(context - 1) to context - 1."""
    batch, found = Batch([kind.buckets], head_dim=width), dict[str, np.ndarray | None]()
    fields: dict[str, Any] = {"bucket_count": kind.buckets}
    sizes = (kind.buckets, heads, width)
    for part, present, nbytes in (
        ("keys", kind.keys, disentangled.key_bytes(kv_dtype, *sizes)),
        ("queries", kind.queries, disentangled.query_bytes(*sizes)),
    ):
        found[part], fields[f"position_{part}"] = None, 0
        if present:
            x = found[part] = numbers("normal", seed + len(found), *sizes)
            table = fields[f"position_{part}"] = guarded(nbytes, np.uint8)
            call(
                KernelKey(f"position_{part}", kv_dtype=kv_dtype), batch, 3, x=x, heads=heads, head_dim=width,
                scale=scale, out=table,
            )  # fmt: skip
    table = BucketTable(kind, context)
    values = table.values()
    fields["buckets"] = values[table.origin :]
    return Positions(found["keys"], found["queries"], values[: 2 * context - 1][::-1].astype(np.int64), fields)
