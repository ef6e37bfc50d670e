"""Recurrent layers: Gated DeltaNet, Mamba-2, gated short convolutions. (T, D) → (T, D)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from msgspec import Struct

from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.matmul.layouts import ROWS, round_up
from pellucid.model.spec import DeltaNet, Mamba, Norm, ShortConvolution
from pellucid.plan.attention import NOUNS
from pellucid.plan.builder import Builder, columns
from pellucid.plan.feedforward import apply
from pellucid.plan.norm import norm, regroup
from pellucid.plan.plan import At, Cache, PageBytes, Value, Vector
from pellucid.plan.points import View
from pellucid.runtime.cache_layout import StateShape

# Shared parts of recurrent layers: the convolution, the decay of states, and the scan over tokens.

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
    fields: dict[str, Value] = {"x": At(x), "width": width, "taps": taps, "out": At(out)}
    fields |= state.fields(part) if taps > 1 else {"state": 0, "page_bytes": 0}
    fields |= {"weight": Vector(f"{stage}.weight", by_column=True), "weight_stride": 4 * width}
    fields["bias"] = Vector(f"{stage}.bias") if bias else 0
    own = (state.name_of(part),) if taps > 1 else ()
    kernel, shape = KernelKey("convolve", silu=silu, ahead=ahead), f"(T, {count}), {taps} taps"
    partitions = dict.fromkeys((x, out), columns(width))
    builder.emit(stage, kernel, fields, (x, *own), (out, *own), shape, partitions=partitions)
    if taps > 1:
        state.point(builder, part, "the last inputs of a convolution, after the last token of a step")
    return out


def decays(builder: Builder, stage: str, x: str, limits: tuple[float, float]) -> tuple[str, str]:
    """Compute the step size and the decay of each head from the projection x (T, H). x becomes the step sizes."""
    heads = builder.count_of(x)
    out = builder.buffer("decays", heads)
    fields: dict[str, Value] = {"x": At(x), "width": builder.width_of(x), "low": limits[0], "high": limits[1]}
    fields |= {"bias": Vector(f"{stage}.rate.bias"), "rate": Vector(f"{stage}.rate.weight"), "decays": At(out)}
    builder.emit(f"{stage}.decay", "decay", fields, (x,), (x, out), f"(T, {heads})")
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
    fields: dict[str, Value] = {**state.fields("memory"), "q": At(q), "k": At(k), "v": At(v), "out": At(out)}
    fields |= {"decays": At(decays), "factors": At(factors), "head_stride": 4 * builder.width_of(decays)}
    fields |= {"heads": shape.heads, "groups": shape.groups, "neighbours": shape.neighbours}
    fields |= {"key_dim": shape.key_dim, "value_dim": shape.value_dim}
    fields |= {"key_stride": 4 * builder.width_of(k), "group_stride": 4 * shape.key_dim}
    fields["skip"] = Vector(f"{stage}.skip.weight") if skip else 0
    reads, memory = (q, k, v, decays, factors), state.name_of("memory")
    printed = f"(T, {shape.heads}, {shape.value_dim}), state ({shape.heads}, {shape.key_dim}, {shape.value_dim})"
    builder.emit(f"{stage}.scan", KernelKey("scan", delta=delta), fields, (*reads, memory), (out, memory), printed)
    state.point(builder, "memory", "the recurrent state after the last token of a step")
    return builder.point(out, "the output of each head, read from its state")


# Gated DeltaNet: the state of each head predicts a token's value from its key, and is updated by the error.
#
# (T, D) → (T, D). (Yang et al. 2024)

EPS = 1e-6  # added to the sum of squares of a query or key when it is scaled to length 1


def delta_net(builder: Builder, stage: str, kind: DeltaNet, x: str, out: str) -> str:
    """out = delta_net(x), without the residual addition."""
    keys, values = kind.key_heads * kind.key_dim, kind.heads * kind.value_dim
    shape = ScanShape(
        kind.heads,
        kind.key_heads,
        round_up(kind.key_dim, ROWS),
        round_up(kind.value_dim, ROWS),
        1 if kind.tiled else kind.heads // kind.key_heads,
    )
    state = add_state(
        builder,
        stage,
        q=convolution_values(kind.taps, keys),
        k=convolution_values(kind.taps, keys),
        v=convolution_values(kind.taps, values),
        memory=shape.values,
    )
    parts = {}
    for part, width, letters, heads in (
        ("q", keys, "G K", kind.key_heads),
        ("k", keys, "G K", kind.key_heads),
        ("v", values, "H V", kind.heads),
    ):
        projected = builder.linear(f"{stage}.{part}", x, width, part, letters=letters, parts=heads)
        builder.point(projected, f"{NOUNS[part]}, before the convolution")
        parts[part] = convolve(
            builder, f"{stage}.{part}_conv", projected, kind.taps, state, part,
            bias=False, silu=True, parts=heads,
        )  # fmt: skip
        builder.point(parts[part], f"{NOUNS[part]}, after the convolution")
    gate = builder.linear(f"{stage}.gate", x, values, "gate")
    builder.point(gate, GATE)
    beta = builder.linear(f"{stage}.beta", x, kind.heads, "beta")
    builder.point(beta, "the learning rate of each head (beta), before the sigmoid")
    step = builder.linear(f"{stage}.step", x, kind.heads, "step")
    builder.point(step, STEP)
    apply(builder, f"{stage}.beta_sigmoid", "sigmoid", beta, "", f"(T, {kind.heads})")
    builder.point(beta, "the learning rate of each head (beta)")
    _, decay = decays(builder, stage, step, (0.0, float("inf")))
    for part, heads, width, padded in (
        ("q", kind.key_heads, kind.key_dim, shape.key_dim),
        ("k", kind.key_heads, kind.key_dim, shape.key_dim),
        ("v", kind.heads, kind.value_dim, shape.value_dim),
    ):
        parts[part] = regroup(builder, f"{stage}.{part}_heads", parts[part], heads, width, padded)
    # x / sqrt(sum of squares + eps) is the RMS norm with eps / K, times K^-1/2. Queries are multiplied by K^-1/2 twice.
    length = Norm("rms", EPS / kind.key_dim, weight=False)
    for part, factor in (("q", 1 / kind.key_dim), ("k", kind.key_dim**-0.5)):
        norm(
            builder, f"{stage}.{part}_norm", length, parts[part],
            parts=kind.key_heads, count=kind.key_dim, factor=factor,
        )  # fmt: skip
        builder.point(parts[part], f"{NOUNS[part]}, scaled to a fixed length")
    scanned = scan(
        builder, stage, shape, state, q=parts["q"], k=parts["k"], v=parts["v"], decays=decay, factors=beta,
        skip=False, delta=True, width=kind.value_dim,
    )  # fmt: skip
    norm(builder, f"{stage}.head_norm", kind.norm, scanned, parts=kind.heads, count=kind.value_dim)
    builder.point(scanned, "the output of each head, normalised")
    scanned = regroup(builder, f"{stage}.heads", scanned, kind.heads, shape.value_dim, kind.value_dim)
    gated(builder, stage, "silu", gate, scanned, values)
    return builder.linear(f"{stage}.output", gate, builder.spec.embedding.width, out)


# Mamba-2: the state of each head decays and adds a token's value, with weights that depend on the token.
#
# (T, D) → (T, D). (Dao and Gu 2024)


def mamba(builder: Builder, stage: str, kind: Mamba, x: str, out: str) -> str:
    """out = mamba(x), without the residual addition."""
    inner, of_groups = kind.heads * kind.head_dim, kind.groups * kind.state
    shape = ScanShape(
        kind.heads, kind.groups, round_up(kind.state, ROWS), round_up(kind.head_dim, ROWS), kind.heads // kind.groups
    )
    state = add_state(
        builder,
        stage,
        x=convolution_values(kind.taps, inner),
        b=convolution_values(kind.taps, of_groups),
        c=convolution_values(kind.taps, of_groups),
        memory=shape.values,
    )
    nouns = {"x": "values", "b": "keys (B)", "c": "queries (C)"}
    abouts = {"gate": GATE, "step": STEP, **{part: f"{noun}, before the convolution" for part, noun in nouns.items()}}
    widths = {"gate": inner, "x": inner, "b": of_groups, "c": of_groups, "step": kind.heads}
    parts = {}
    for (part, width), factor in zip(widths.items(), kind.multipliers):
        values = builder.linear(f"{stage}.{part}", x, width, f"inner.{part}", bias=kind.bias)
        builder.point(values, abouts[part])
        builder.scale(f"{stage}.{part}_scale", values, factor, f"{abouts[part]}, times a factor")
        parts[part] = values
    for part, noun in nouns.items():
        conv, bias = f"{stage}.{part}_conv", kind.conv_bias
        parts[part] = convolve(builder, conv, parts[part], kind.taps, state, part, bias=bias, silu=True)
        builder.point(parts[part], f"{noun}, after the convolution")
    steps, decay = decays(builder, stage, parts["step"], kind.limits)
    scanned = scan(
        builder,
        stage,
        shape,
        state,
        q=regroup(builder, f"{stage}.c_groups", parts["c"], kind.groups, kind.state, shape.key_dim),
        k=regroup(builder, f"{stage}.b_groups", parts["b"], kind.groups, kind.state, shape.key_dim),
        v=regroup(builder, f"{stage}.x_heads", parts["x"], kind.heads, kind.head_dim, shape.value_dim),
        decays=decay,
        factors=steps,
        skip=True,
        delta=False,
        width=kind.head_dim,
    )
    scanned = regroup(builder, f"{stage}.heads", scanned, kind.heads, shape.value_dim, kind.head_dim)
    if kind.norm and kind.norm_first:
        scanned = _group_norm(builder, f"{stage}.output_norm", kind, kind.norm, scanned)
    result = gated(builder, stage, "silu", parts["gate"], scanned, inner)
    if kind.norm and not kind.norm_first:
        result = _group_norm(builder, f"{stage}.output_norm", kind, kind.norm, result)
    width = builder.spec.embedding.width
    return builder.linear(f"{stage}.output", result, width, out, bias=kind.output_bias)


def _group_norm(builder: Builder, stage: str, kind: Mamba, norm_kind: Norm, x: str) -> str:
    """Normalize each group of x separately, with its own weights."""
    groups, each = kind.groups, kind.heads * kind.head_dim // kind.groups
    if groups == 1:
        return builder.point(norm(builder, stage, norm_kind, x), "the output of the heads, normalised")
    padded = round_up(each, ROWS)
    wide = regroup(builder, f"{stage}.groups", x, groups, each, padded)
    norm(builder, stage, norm_kind, wide, parts=groups, count=each, own_weights=True, letters="G D")
    builder.point(wide, "the output of the heads, normalised by group")
    return regroup(builder, f"{stage}.joined", wide, groups, padded, each)


# A gated short convolution: out(c * conv(b * x)). (T, D) → (T, D). (Liquid AI 2025, LFM2)


def short_convolution(builder: Builder, stage: str, kind: ShortConvolution, x: str, out: str) -> str:
    """out = short_convolution(x), without the residual addition."""
    width = builder.spec.embedding.width
    state = add_state(builder, stage, x=convolution_values(kind.taps, width))
    abouts = {"b": "the gates before the convolution", "c": "the gates after the convolution", "x": "values"}
    parts = {}
    for part, about in abouts.items():
        parts[part] = builder.linear(f"{stage}.{part}", x, width, f"inner.{part}", bias=kind.bias)
        builder.point(parts[part], about)
    b, c, value = parts.values()
    apply(builder, f"{stage}.product", "none", b, value, f"(T, {width})")
    builder.point(b, "values, times the gates before the convolution")
    ahead = kind.taps // 2 if kind.centered else 0
    mixed = convolve(builder, f"{stage}.conv", b, kind.taps, state, "x", bias=kind.bias, silu=False, ahead=ahead)
    builder.point(mixed, "the result of the convolution")
    gated(builder, stage, "none", c, mixed, width)
    return builder.linear(f"{stage}.output", c, width, out, bias=kind.bias)


RECURRENT: Mapping[type, Callable[..., str]] = {DeltaNet: delta_net, Mamba: mamba, ShortConvolution: short_convolution}
"""The function that emits each kind of recurrent layer."""
