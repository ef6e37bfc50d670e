"""Feed-forward: each token separately is projected up, passed through a non-linearity and projected down.

(T, D) → (T, D).
"""

from __future__ import annotations

from pellucid.kernels.core.definitions import KernelKey
from pellucid.model.spec import FeedForward
from pellucid.plan.builder import COUNT, Builder, columns
from pellucid.plan.plan import At, Operation, Value


def feedforward(builder: Builder, layer: int, kind: FeedForward, x: str, out: str) -> str:
    """out = down(f(gate x) * up x), or down(f(up x)); not yet added to the residual stream."""
    stage = f"blocks.{layer}.feedforward"
    inside, reads = builder.buffer("hidden", kind.width), ["hidden"]
    first = "gate" if kind.gated else "up"
    builder.linear(f"{stage}.{first}", x, f"{stage}.{first}", kind.width, inside, bias=kind.bias)
    if kind.gated:
        reads.append(builder.linear(f"{stage}.up", x, f"{stage}.up", kind.width, "up", bias=kind.bias))
    fields: dict[str, Value] = {
        "x": At(inside),
        "up": At("up") if kind.gated else 0,
        "width": builder.width_of(inside),
        "out": At(inside),
        "quantized": 0,
        "rows": COUNT["tokens"],
    }
    kernel = KernelKey("activation", kind=kind.activation, activation_bits=8)
    partitions = dict.fromkeys(reads, columns(builder.width_of(inside)))
    shape = f"(T, {kind.width})"
    builder.emit(
        Operation(f"{stage}.hidden", kernel, fields, tuple(reads), (inside,), shape, partitions=partitions)
    )
    return builder.linear(
        f"{stage}.down", inside, f"{stage}.down", builder.spec.embedding.width, out, bias=kind.bias
    )
