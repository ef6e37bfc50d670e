"""Feed-forward: up-projection, activation function and down-projection of each token. (T, D) → (T, D)."""

from __future__ import annotations

from pellucid.kernels.core.definitions import KernelKey
from pellucid.model.spec import FeedForward
from pellucid.plan.builder import ROW_COUNT, Builder, tiles
from pellucid.plan.plan import At, Operation, Value

GATE = "the gate of each neuron, before the activation"
UP = "the up-projection, which the gates multiply"
NEURONS = "the neurons, before the activation"


def feedforward(
    builder: Builder,
    stage: str,
    kind: FeedForward,
    x: str,
    out: str,
    activation_bits: int = 0,
    first_bits: int = 0,
) -> str:
    """out = down(f(gate x) * up x), or down(f(up x)), without the residual addition.

    ``stage`` is also the prefix of the slots: "blocks.3.feedforward". ``activation_bits`` of the last product and
    ``first_bits`` of the products before it, if not 0, replace the value of the plan.
    """

    def linear(part: str, x: str, width: int, out: str, letters: str = "F") -> str:
        bits = activation_bits if part == "down" else first_bits
        bias = kind.bias or (kind.output_bias and part == "down")
        return builder.linear(
            f"{stage}.{part}", x, width, out, bias=bias, activation_bits=bits, letters=letters
        )

    hidden, up = linear("gate" if kind.gated else "up", x, kind.width, "hidden"), ""
    builder.point(hidden, GATE if kind.gated else NEURONS)
    if kind.gated:
        up = linear("up", x, kind.width, "up")
        builder.point(up, UP)
    builder.scale(f"{stage}.gate_scale", hidden, kind.gate_scale, "the gates, times a factor")
    if kind.sparsity:
        _sparsify(builder, f"{stage}.sparsify", hidden, kind.sparsity)
        builder.point(hidden, "the gates above a threshold, minus the threshold; the other gates are 0")
    activate(builder, f"{stage}.hidden", kind, hidden, up, f"(T, {kind.width})")
    builder.point(hidden, "the neurons after the activation")
    return linear("down", hidden, builder.spec.embedding.width, out, "D")


def _sparsify(builder: Builder, stage: str, x: str, part: float) -> None:
    """x = max(0, x - cut). ``cut`` is the quantile ``part`` of a normal distribution fitted to the row."""
    from statistics import NormalDist  # slow to import, and few models need it

    deviations = NormalDist().inv_cdf(part)
    builder.in_place(stage, "sparsify", x, count=builder.count_of(x), deviations=deviations)


def activate(builder: Builder, stage: str, kind: FeedForward, x: str, up: str, shape: str) -> None:
    """x = f(x) * up, or f(x) without ``up``, with the activation function f of a feed-forward."""
    apply(builder, stage, kind.activation, x, up, shape, kind.limit, kind.sharpness)


def apply(
    builder: Builder,
    stage: str,
    function: str,
    x: str,
    up: str,
    shape: str,
    limit: float = 0.0,
    sharpness: float = 0.0,
) -> None:
    """x = f(x) * up, or f(x) without ``up``. ``function`` is the name of f in ``kernels/ops/activation.py``."""
    width, reads, rows = builder.width_of(x), (x, up) if up else (x,), builder.buffers[x].rows
    fields: dict[str, Value] = {
        "x": At(x),
        "up": At(up) if up else 0,
        "limit": limit,
        "sharpness": sharpness,
        "width": width,
        "out": At(x),
        "quantized": 0,
        "rows": ROW_COUNT[rows],
    }
    kernel = KernelKey("activation", kind=function, activation_bits=8)
    partitions = dict.fromkeys(reads, tiles(width))
    builder.emit(Operation(stage, kernel, fields, reads, (x,), shape, rows=rows, partitions=partitions))
