"""Positions: learned or sinusoidal vectors, rotary angles, ALiBi biases, relative buckets and vectors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import chain, pairwise

from pellucid.errors import UnsupportedModel
from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.core.record import StepRecord
from pellucid.kernels.matmul.quantize import MAX_ACTIVATION_BITS
from pellucid.model.positions import (
    Learned,
    QueryScale,
    RelativeBuckets,
    RelativePositions,
    Rotary,
    RotaryScaling,
    Sinusoidal,
)
from pellucid.model.spec import Attention
from pellucid.plan.builder import Builder, heads
from pellucid.plan.embedding import lookup
from pellucid.plan.norm import norm, regroup
from pellucid.plan.plan import (
    At,
    BucketTable,
    Constant,
    DistanceTable,
    KeyTable,
    LearnedTable,
    ScoreBias,
    Value,
    Vector,
)
from pellucid.runtime.cache_layout import LayerShape

# Relative positions with vectors of their own: their keys and queries, which the setup of a plan computes.

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
    builder: Builder, stage: str, kind: Attention, relative: RelativePositions, shape: LayerShape, part: str, bias: bool
) -> str:
    """The table of the buckets' keys ("k") or queries ("q") of a block."""
    from pellucid.kernels.attention.disentangled import key_bytes, query_bytes

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
    fields: dict[str, Value] = {"x": At(x), "out": At(f"{step}.table")}
    fields |= {"heads": kind.heads, "head_dim": shape.head_dim, "scale": kind.scale}
    printed = f"({relative.buckets}, {kind.heads}, {kind.head_dim})"
    key = KernelKey(kernel, kv_dtype=shape.kv_dtype)
    setup.emit(f"{step}_table", key, fields, (x,), (f"{step}.table",), printed)
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


# Positions: learned or sinusoidal vectors, rotary angles of queries and keys, ALiBi biases of scores.


def position(builder: Builder, x: str) -> str:
    """Add learned or sinusoidal vectors to x, and compute the step's angles for each kind of rotary positions."""
    if isinstance(builder.spec.position, Learned):
        stage = builder.named("position")
        lookup(builder, stage, f"{stage}.weight", x, index=StepRecord.at.positions, add=True)
    if isinstance(builder.spec.position, Sinusoidal):
        _add_sinusoids(builder, builder.spec.position, x)
    if builder.spec.position is not None:
        builder.point(x, "the embedding and the vector of the position")
    for rotary in _rotary_kinds(builder):
        _angles(builder, rotary)
    return x


def sinusoidal_frequencies(kind: Sinusoidal, width: int) -> tuple[float, ...]:
    """Frequencies of the D/2 pairs, in radians per position."""
    pairs = width // 2
    return tuple(kind.base ** (-j / (pairs - kind.endpoint)) for j in range(pairs))


def _add_sinusoids(builder: Builder, kind: Sinusoidal, x: str) -> None:
    frequencies = sinusoidal_frequencies(kind, builder.count_of(x))
    builder.constants["position.frequencies"] = frequencies
    fields: dict[str, Value] = {"x": At(x), "stride": 4 * builder.width_of(x), "offset": kind.offset}
    fields |= {"frequencies": Constant("position.frequencies"), "pairs": len(frequencies)}
    builder.emit(builder.named("position"), "sinusoidal", fields, (x,), (x,), f"(T, {builder.count_of(x)})")


def alibi_slopes(heads: int, most: float = 8.0) -> tuple[float, ...]:
    """Slope of each head: the decrease of its score per token of distance (Press et al. 2022).

    If H is a power of two, the slopes are a geometric sequence from 2^(-most/H) to 2^-most. Otherwise the slopes are
    the sequence for the next lower power of two, followed by every second value of the sequence for the next higher
    power of two.
    """
    lower = 1 << (heads.bit_length() - 1)
    slopes = [2.0 ** (-most * (i + 1) / lower) for i in range(lower)]
    slopes += [2.0 ** (-most / 2 * (2 * i + 1) / lower) for i in range(heads - lower)]
    return tuple(slopes)


def scale_queries(builder: Builder, stage: str, kind: QueryScale, q: str, count: int) -> None:
    """Multiply the queries of ``count`` heads by a factor that depends on their position."""
    width = builder.width_of(q)
    fields: dict[str, Value] = {"x": At(q), "width": width, "heads": count}
    fields |= {"beta": kind.beta, "length": kind.length, "offset": kind.offset}
    builder.emit(stage, "query_scale", fields, (q,), (q,), f"(T, {width})", partitions={q: heads(count)})


def alibi_table(builder: Builder, kind: Attention) -> str:
    """Add the table of ALiBi biases for an attention to the plan. Returns the name of the table."""
    name = f"alibi.{kind.heads}.{kind.alibi_most:g}.{kind.alibi_scale:g}" + ("" if kind.causal else ".both")
    slopes, context = alibi_slopes(kind.heads, kind.alibi_most), builder.spec.context
    if kind.alibi_rounded:
        name += ".rounded"
        builder.tables[name] = KeyTable(slopes, kind.alibi_scale, context)
    else:
        scaled = tuple(kind.alibi_scale * slope for slope in slopes)
        builder.tables[name] = DistanceTable(context, 0 if kind.causal else context - 1, scaled)
    return name


def bucket_table(builder: Builder, stage: str, kind: Attention, buckets: RelativeBuckets) -> str:
    """Add the table of learned biases for an attention to the plan. Returns the name of the table.

    Raises:
        UnsupportedModel: blocks share a table, but not its buckets.
    """
    name = f"{stage}.relative" if buckets.own else builder.named("relative")
    context = builder.spec.context
    future = 0 if kind.causal else context - 1
    table = LearnedTable(context, future, Vector(f"{name}.weight"), kind.heads, buckets)
    if builder.tables.setdefault(name, table) != table:
        raise UnsupportedModel(f"{stage}: its buckets differ from the buckets of earlier blocks, which share the table")
    return name


def rotate(builder: Builder, stage: str, rotary: Rotary, x: str, count: int, head_dim: int) -> str:
    """Rotate (T, heads, K) in place by the step's angles."""
    angles = _angles_name(builder, rotary)
    fields: dict[str, Value] = {"x": At(x), "heads": count, "head_dim": head_dim, "pairs": rotary.dims // 2}
    fields |= {"angles": At(angles), "stride": 4 * builder.width_of(angles)}
    kernel = KernelKey("rotary", pairing=rotary.pairing)
    shape = f"(T, {count}, {head_dim})"
    builder.emit(stage, kernel, fields, (x, angles), (x,), shape, partitions={x: heads(count)})
    return x


def inverse_frequencies(rotary: Rotary, context: int) -> tuple[float, ...]:
    """Rotary frequency of each pair in radians per position: base^(-2j/dims), with the scaling of the model.

    ``context`` is the context length at run time, in tokens.

    Raises:
        UnsupportedModel: the divisors in the file are not one positive number per pair.
    """
    plain = [rotary.base ** (-2 * j / rotary.dims) for j in range(rotary.dims // 2)]
    scaling = rotary.scaling
    divisors = rotary.factors
    if scaling is not None and scaling.kind == "longrope":
        divisors = scaling.short if context <= scaling.trained_context else scaling.long
        # Check both, so that an error does not depend on the context.
        for factors in (scaling.short, scaling.long):
            _check_divisors(factors, len(plain))
    if divisors:
        _check_divisors(divisors, len(plain))
        plain = [f / divisor for f, divisor in zip(plain, divisors)]
    if scaling is None or scaling.kind == "longrope":
        return tuple(plain)
    if scaling.kind == "linear":
        return tuple(f / scaling.factor for f in plain)
    if scaling.kind == "dynamic":
        return _dynamic(rotary, scaling, plain, context)
    if scaling.kind == "yarn":
        return _yarn(rotary, scaling, plain)
    low = scaling.trained_context / scaling.low_frequency_factor
    high = scaling.trained_context / scaling.high_frequency_factor
    out = []
    for f in plain:
        wavelength = 2 * math.pi / f
        if wavelength < high:
            out.append(f)
        elif wavelength > low or low == high:  # Llama 4 Scout has equal factors
            out.append(f / scaling.factor)
        else:
            span = scaling.high_frequency_factor - scaling.low_frequency_factor
            smooth = (scaling.trained_context / wavelength - scaling.low_frequency_factor) / span
            out.append((1 - smooth) * f / scaling.factor + smooth * f)
    return tuple(out)


def _check_divisors(divisors: tuple[float, ...], pairs: int) -> None:
    if len(divisors) != pairs or not all(f > 0 and math.isfinite(f) for f in divisors):
        raise UnsupportedModel(
            f"rotary factors (short_factor, long_factor, rope_freqs): the file has {len(divisors)} numbers; they must "
            f"be {pairs} positive numbers"
        )


def _dynamic(rotary: Rotary, scaling: RotaryScaling, plain: list[float], context: int) -> tuple[float, ...]:
    """Dynamic NTK scaling: frequencies of the base b a^(dims / (dims - 2)), where b is the base of the model.

    The growth a is 1 up to the trained context. It increases by ``factor`` for each further multiple of this context.
    """
    if rotary.dims < 4:
        raise UnsupportedModel(
            f"rotary scaling 'dynamic' needs at least 4 rotated values of a head; the model has {rotary.dims}"
        )
    growth = 1 + scaling.factor * max(context / scaling.trained_context - 1, 0)
    return tuple(f * growth ** (-2 * j / (rotary.dims - 2)) for j, f in enumerate(plain))


def _yarn(rotary: Rotary, scaling: RotaryScaling, plain: list[float]) -> tuple[float, ...]:
    """Frequencies after YaRN (Peng et al. 2023, section 3.2; transformers' ``_compute_yarn_parameters``)."""

    def pair(turns: float) -> float:
        """The (fractional) index of the pair that makes ``turns`` rotations over the trained context."""
        ratio = scaling.trained_context / (turns * 2 * math.pi)
        return rotary.dims * math.log(ratio) / (2 * math.log(rotary.base))

    low, high = pair(scaling.fast), pair(scaling.slow)
    if scaling.whole_pairs:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary.dims - 1)
    if low == high:
        high += 0.001
    out = []
    for j, f in enumerate(plain):
        share = 1 - min(max((j - low) / (high - low), 0.0), 1.0)
        out.append(f / scaling.factor * (1 - share) + f * share)
    return tuple(out)


def _rotary_kinds(builder: Builder) -> list[Rotary]:
    """The distinct rotary positions of the model's layers."""
    return list(dict.fromkeys(kind.rotary for kind in builder.spec.attentions if kind.rotary))


def _angles_name(builder: Builder, rotary: Rotary) -> str:
    kinds = _rotary_kinds(builder)
    return "angles" if len(kinds) == 1 else f"angles.{kinds.index(rotary)}"


def _angles(builder: Builder, rotary: Rotary) -> None:
    name, pairs = _angles_name(builder, rotary), rotary.dims // 2
    builder.buffer(name, 2 * pairs)
    tables = [inverse_frequencies(rotary, context) for context in builder.spec.rotary_contexts]
    builder.constants[f"{name}.inverse_frequency"] = tuple(chain.from_iterable(tables))
    fields: dict[str, Value] = {"inverse_frequency": Constant(f"{name}.inverse_frequency"), "pairs": pairs}
    fields |= {"scaled_stride": 8 * pairs * (len(tables) - 1), "unscaled": builder.spec.unscaled_context}
    fields |= {"magnitude": rotary.scaling.magnitude if rotary.scaling else 1.0}
    fields |= {"out": At(name), "stride": 4 * builder.width_of(name)}
    builder.emit(builder.named(f"position.{name}"), "rotary_angles", fields, (), (name,), f"(T, 2, {pairs})")
    builder.point(name, "cosines and sines of the angles by which queries and keys are rotated")
