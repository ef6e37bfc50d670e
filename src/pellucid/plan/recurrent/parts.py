"""Shared parts of recurrent layers: the convolution, the decay of states, and the scan over tokens."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.matmul.packed_layout import ROWS, round_up
from pellucid.plan.builder import ROW_COUNT, Builder, columns
from pellucid.plan.feedforward import apply
from pellucid.plan.plan import At, Cache, Operation, PageBytes, Value, Vector
from pellucid.plan.points import View
from pellucid.runtime.cache_layout import StateShape

GATE = "the gates of the result, before the activation"
STEP = "the projection for the step size of each head"


class State(Struct, frozen=True):
    """The state of a recurrent layer.

    ``layer`` is the number of the layer in the cache, ``stage`` the stage of the layer in the plan. ``sizes`` maps each
    part of the state to its number of values.
    """

    layer: int
    stage: str
    sizes: Mapping[str, int]

    def fields(self, part: str) -> dict[str, Value]:
        """The record fields of a part of the state."""
        return {"state": Cache(self.layer, part), "page_bytes": PageBytes(self.layer)}

    def name_of(self, part: str) -> str:
        """The name of a part in the ``reads`` and ``writes`` of operations."""
        return f"cache.{self.layer}.{part}"

    def point(self, builder: Builder, part: str, about: str) -> None:
        """Declare that a part, which the last operation wrote, is a hook point."""
        size, name = self.sizes[part], f"{self.stage}.state.{part}"
        view = View(1, size, size, size, "S")
        state = Cache(self.layer, part)
        builder.point(self.name_of(part), about, name=name, kind="state", view=view, state=state)


def add_state(builder: Builder, stage: str, **parts: int) -> State:
    """Add a layer to the cache. ``parts`` is the number of values of each part of its state."""
    sizes = {name: size for name, size in parts.items() if size}
    return State(builder.cached(StateShape(tuple(sizes.items()))), stage, sizes)


def convolution_values(taps: int, width: int) -> int:
    """Number of values of earlier tokens that a convolution keeps."""
    return (taps - 1) * round_up(width, ROWS)


def convolve(
    builder: Builder,
    stage: str,
    x: str,
    taps: int,
    state: State,
    part: str,
    *,
    bias: bool,
    silu: bool,
    parts: int = 1,
    ahead: int = 0,
) -> str:
    """Convolve x with the weights of the slot ``stage``, over the last ``taps`` tokens. Returns a new buffer.

    ``parts`` is the number of heads of a row. ``ahead`` of the ``taps`` tokens are later tokens.
    """
    count, width = builder.count_of(x), builder.width_of(x)
    out = builder.buffer(f"{x}.conv", count)
    builder.view(out, builder.letters_of(x), parts, count // parts)
    fields: dict[str, Value] = {
        "x": At(x),
        "width": width,
        "taps": taps,
        "weight": Vector(f"{stage}.weight", by_column=True),
        "weight_stride": 4 * width,
        "bias": Vector(f"{stage}.bias") if bias else 0,
        "out": At(out),
        **(state.fields(part) if taps > 1 else {"state": 0, "page_bytes": 0}),
    }
    reads, writes = ((x, state.name_of(part)), (out, state.name_of(part))) if taps > 1 else ((x,), (out,))
    builder.emit(
        Operation(
            stage,
            KernelKey("convolve", silu=silu, ahead=ahead),
            fields,
            reads,
            writes,
            f"(T, {count}), {taps} taps",
            partitions=dict.fromkeys((x, out), columns(width)),
        )
    )
    if taps > 1:
        state.point(builder, part, "the last inputs of a convolution, after the last token of a step")
    return out


def decays(builder: Builder, stage: str, x: str, limits: tuple[float, float]) -> tuple[str, str]:
    """Compute the step size and the decay of each head from the projection x (T, H). x becomes the step sizes."""
    heads = builder.count_of(x)
    out = builder.buffer("decays", heads)
    fields: dict[str, Value] = {
        "x": At(x),
        "width": builder.width_of(x),
        "bias": Vector(f"{stage}.rate.bias"),
        "rate": Vector(f"{stage}.rate.weight"),
        "low": limits[0],
        "high": limits[1],
        "decays": At(out),
        "rows": ROW_COUNT["tokens"],
    }
    builder.emit(Operation(f"{stage}.decay", KernelKey("decay"), fields, (x,), (x, out), f"(T, {heads})"))
    builder.point(x, "the step size of each head", name=f"{stage}.step_softplus")
    builder.point(out, "the factor by which each head's state decays")
    return x, out


def gated(builder: Builder, stage: str, function: str, gate: str, x: str, width: int) -> str:
    """gate = f(gate) * x. ``function`` is the name of f, ``width`` the number of values of a row."""
    apply(builder, f"{stage}.gated", function, gate, x, f"(T, {width})")
    return builder.point(gate, "the result, times the gates")


class ScanShape(Struct, frozen=True):
    """The dimensions of a scan: H ``heads`` of values and G ``groups`` of keys.

    ``key_dim`` K and ``value_dim`` V include padding with zeros. ``neighbours`` consecutive heads use the same group.
    """

    heads: int
    groups: int
    key_dim: int
    value_dim: int
    neighbours: int

    @property
    def values(self) -> int:
        """Number of values of the state of a sequence."""
        return self.heads * self.key_dim * self.value_dim


def scan(
    builder: Builder,
    stage: str,
    shape: ScanShape,
    state: State,
    *,
    q: str,
    k: str,
    v: str,
    decays: str,
    factors: str,
    skip: bool,
    delta: bool,
    width: int,
) -> str:
    """Update the state with one token after the other. Returns the buffer of the heads' outputs, (T, H, V).

    The first ``width`` of the V values of a head are the output. The other values are padding.
    """
    out = builder.buffer("scanned", shape.heads * shape.value_dim)
    builder.view(out, "H V", shape.heads, width, shape.value_dim)
    fields: dict[str, Value] = {
        "q": At(q),
        "k": At(k),
        "v": At(v),
        "decays": At(decays),
        "factors": At(factors),
        "head_stride": 4 * builder.width_of(decays),
        "skip": Vector(f"{stage}.skip.weight") if skip else 0,
        "heads": shape.heads,
        "groups": shape.groups,
        "neighbours": shape.neighbours,
        "key_dim": shape.key_dim,
        "value_dim": shape.value_dim,
        "key_stride": 4 * builder.width_of(k),
        "group_stride": 4 * shape.key_dim,
        "out": At(out),
        **state.fields("memory"),
    }
    memory = state.name_of("memory")
    builder.emit(
        Operation(
            f"{stage}.scan",
            KernelKey("scan", delta=delta),
            fields,
            (q, k, v, decays, factors, memory),
            (out, memory),
            f"(T, {shape.heads}, {shape.value_dim}), state ({shape.heads}, {shape.key_dim}, {shape.value_dim})",
        )
    )
    state.point(builder, "memory", "the recurrent state after the last token of a step")
    return builder.point(out, "the output of each head, read from its state")
