"""The slots of a spec and their shapes. Both the plan and the checks of files use this table."""

from __future__ import annotations

from collections.abc import Iterator

from pellucid.model.outputs import Dense
from pellucid.model.positions import Learned
from pellucid.model.spec import (
    AltUp,
    Attention,
    Block,
    DeltaNet,
    FeedForward,
    Latent,
    Mamba,
    Mixture,
    ModelSpec,
    Norm,
    Recurrent,
    ShortConvolution,
)

Shape = tuple[int, ...]
ENCODER = "encoder."
"""The prefix of slots, stages and hook points of the encoder in an encoder-decoder."""
SMOOTHING = "smoothing.weight"
"""The end of the slot of a part's inverse smoothing factors."""


def expected_shapes(spec: ModelSpec) -> dict[str, Shape]:
    """Slot names and shapes, row-major. A matrix from D inputs to N outputs is (N, D); for E experts (E, N, D).

    The slots of an encoder-decoder's encoder begin with `ENCODER`.
    """
    encoder = expected_shapes(spec.encoder) if spec.encoder else {}
    return {**{ENCODER + slot: shape for slot, shape in encoder.items()}, **dict(_slots(spec))}


def _slots(spec: ModelSpec) -> Iterator[tuple[str, Shape]]:
    embedding, width = spec.embedding, spec.embedding.width
    yield "embed.weight", (embedding.vocabulary, embedding.narrow or width)
    if embedding.narrow:
        yield from _linear("embed.widen", width, embedding.narrow, embedding.narrow_sum and not embedding.norm_last)
    if isinstance(spec.position, Learned):
        yield "position.weight", (spec.position.count, embedding.sum_width)
    if relative := next((kind for kind in spec.attentions if kind.relative and not kind.relative.own), None):
        assert relative.relative
        yield "relative.weight", (relative.relative.count, relative.heads)
    if embedding.types:
        yield "embed.types.weight", (embedding.types, embedding.sum_width)
    if embedding.tasks:
        yield "embed.tasks.weight", (embedding.tasks, embedding.sum_width)
    if embedding.norm:
        yield from _norm("embed.norm", embedding.norm, embedding.norm_width)
    if spec.relative:
        yield "relative.weight", (spec.relative.buckets, width)
        if spec.relative.norm:
            yield from _norm("relative.norm", spec.relative.norm, width)
    if spec.convolution:
        yield from _linear("convolution", width, width * spec.convolution.taps, True)
        yield from _norm("convolution.norm", spec.blocks[0].norm, width)
    if spec.per_layer:
        widths = len(spec.blocks) * spec.per_layer.width
        yield "per_layer.embed.weight", (spec.per_layer.vocabulary or embedding.vocabulary, widths)
        yield "per_layer.project.weight", (widths, width)
        yield from _norm("per_layer.norm", spec.blocks[0].norm, spec.per_layer.width)
    if spec.altup:
        for stream in range(1, spec.altup.streams):
            yield f"altup.{stream}.project.weight", (width, width)
            yield f"altup.{stream}.unembed.weight", (width, width)
    for index, block in enumerate(spec.blocks):
        yield from _block(f"blocks.{index}", block, width)
        if block.cross and spec.encoder:
            yield from _attention(f"blocks.{index}.cross", block.cross, width, spec.encoder.embedding.width)
        if spec.altup:
            yield from _altup(f"blocks.{index}.altup", spec.altup, block.norm, width)
        if spec.per_layer:
            at = f"blocks.{index}.per_layer"
            yield f"{at}.gate.weight", (spec.per_layer.width, width)
            yield f"{at}.project.weight", (width, spec.per_layer.width)
            yield from _norm(f"{at}.norm", block.norm, width)
        if block.scalar:
            yield f"blocks.{index}.scalar.weight", (1,)
    if spec.decision:
        yield from _norm("decision.norm", spec.decision.norm, width)
        yield "decision.types.weight", (spec.decision.types, width)
    if spec.final_norm:
        yield from _norm("norm", spec.final_norm, width)
    for number, layer in enumerate(spec.output):
        match layer:
            case Dense():
                yield from _linear(f"output.{number}", layer.width, width, layer.bias)
                width = layer.width
            case Norm():
                yield from _norm(f"output.{number}", layer, width)
    if spec.head and embedding.narrow and width != embedding.narrow:
        yield "project.narrow.weight", (embedding.narrow, width)
    if spec.head and not spec.head.tied:
        yield "project.weight", (spec.output_width, embedding.narrow or width)
    if spec.head and spec.head.bias:
        yield "project.bias", (spec.output_width,)


def _altup(name: str, kind: AltUp, norm: Norm, width: int) -> Iterator[tuple[str, Shape]]:
    streams = kind.streams
    yield from _norm(f"{name}.router_norm", norm, width)
    yield f"{name}.router.weight", (streams, width)
    yield f"{name}.predict.weight", (streams**2, streams)
    yield f"{name}.correct.weight", (streams, streams)
    if kind.scaled:
        yield f"{name}.scale.weight", (width,)


def _linear(name: str, rows: int, columns: int, bias: bool = False, experts: Shape = ()) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (*experts, rows, columns)
    if bias:
        yield f"{name}.bias", (*experts, rows)


def _norm(name: str, norm: Norm, width: int) -> Iterator[tuple[str, Shape]]:
    if norm.weight:
        yield f"{name}.weight", (width,)
    if norm.has_bias:
        yield f"{name}.bias", (width,)


def _block(name: str, block: Block, width: int) -> Iterator[tuple[str, Shape]]:
    if block.attention:
        yield from _attention(f"{name}.attention", block.attention, width)
    if block.recurrent:
        yield from _recurrent(f"{name}.recurrent", block.recurrent, width)
    if block.laurel:
        yield f"{name}.laurel.left.weight", (block.laurel, width)
        yield f"{name}.laurel.right.weight", (width, block.laurel)
        yield from _norm(f"{name}.laurel.norm", block.norm, width)
    if isinstance(block.feedforward, Mixture):
        yield from _mixture(f"{name}.feedforward", block.feedforward, width)
    elif block.feedforward:
        yield from _feedforward(f"{name}.feedforward", block.feedforward, width)
    for part in smoothed_parts(block):
        yield f"{name}.{part}.{SMOOTHING}", (width,)
    for part in sublayers(block):
        of_attention = part == "attention"
        has_norm = block.placement != "output" and not (block.placement == "shared" and part == "feedforward")
        if has_norm and (block.attention_norm or not of_attention):
            yield from _norm(f"{name}.{part}.norm", block.norm, width)
        if block.norms_outputs or (block.attention_post_norm and of_attention):
            yield from _norm(f"{name}.{part}.post_norm", block.norm, width)


def smoothed_parts(block: Block) -> dict[str, tuple[str, ...]]:
    """The parts of a block whose inputs are smoothed, and their matrices that multiply these inputs."""
    parts: dict[str, tuple[str, ...]] = {}
    if block.attention and block.attention.smoothed:
        parts["attention"] = ("q", "k", "v")
    if isinstance(block.feedforward, FeedForward) and block.feedforward.smoothed:
        parts["feedforward"] = ("gate", "up") if block.feedforward.gated else ("up",)
    return parts


def smoothing_slots(spec: ModelSpec) -> dict[str, str]:
    """The slots of all matrices with smoothed inputs, and for each the slot of the inverse factors."""
    return {
        f"blocks.{index}.{part}.{matrix}.weight": f"blocks.{index}.{part}.{SMOOTHING}"
        for index, block in enumerate(spec.blocks)
        for part, matrices in smoothed_parts(block).items()
        for matrix in matrices
    }


def sublayers(block: Block) -> list[str]:
    """The parts of a block with their own norms. A recurrent layer beside attention shares the norm of attention."""
    mixer = "attention" if block.attention else "recurrent" if block.recurrent else ""
    cross, last = "cross" if block.cross else "", "feedforward" if block.feedforward else ""
    return [part for part in (mixer, cross, last) if part]


def _attention(name: str, attention: Attention, width: int, source_width: int = 0) -> Iterator[tuple[str, Shape]]:
    """The slots of an attention. Keys and values of cross attention are projections of rows of ``source_width``."""
    seen = source_width or width
    if attention.latent:
        yield from _latent(name, attention, attention.latent, width)
        return
    heads, kv_heads = attention.heads * attention.head_dim, attention.kv_heads * attention.head_dim
    values, attended = attention.kv_heads * attention.value_dim, attention.heads * attention.value_dim
    for part, rows, columns, bias in (
        ("q", heads, width, attention.bias),
        *([("gate", attended, width, attention.bias)] if attention.gate else []),
        *([] if attention.shared is not None else [("k", kv_heads, seen, attention.bias and attention.key_bias)]),
        *([] if attention.shared is not None or attention.keys_as_values else [("v", values, seen, attention.bias)]),
        ("output", width, attended, attention.output_bias),
    ):
        yield from _linear(f"{name}.{part}", rows, columns, bias)
    relative = attention.disentangled
    if relative and not relative.shared:
        for part, present, bias in (("k", relative.keys, relative.key_bias), ("q", relative.queries, True)):
            if present:
                yield from _linear(f"{name}.position_{part}", heads, width, bias)
    if attention.qk_norm:
        all_heads = attention.qk_norm_whole
        yield from _norm(f"{name}.q_norm", attention.qk_norm, heads if all_heads else attention.head_dim)
        if attention.shared is None:
            yield from _norm(f"{name}.k_norm", attention.qk_norm, kv_heads if all_heads else attention.head_dim)
    if attention.v_norm and attention.shared is None:
        yield from _norm(f"{name}.v_norm", attention.v_norm, attention.value_dim)
    if attention.relative and attention.relative.own:
        yield f"{name}.relative.weight", (attention.relative.count, attention.heads)
    if attention.sinks:
        yield f"{name}.sinks.weight", (attention.heads,)


def _latent(name: str, attention: Attention, latent: Latent, width: int) -> Iterator[tuple[str, Shape]]:
    heads, rotated = attention.heads, attention.head_dim - latent.plain_dim
    if latent.query_rank:
        yield from _linear(f"{name}.q_down", latent.query_rank, width, attention.bias)
        yield from _norm(f"{name}.q_down_norm", latent.norm, latent.query_rank)
    source = latent.query_rank or width
    yield f"{name}.q.weight", (heads * latent.plain_dim, source)
    yield f"{name}.q_rotary.weight", (heads * rotated, source)
    for part, rows in (("latent", latent.rank), ("k_rotary", rotated)):
        yield from _linear(f"{name}.{part}", rows, width, attention.bias)
    yield from _norm(f"{name}.latent_norm", latent.norm, latent.rank)
    yield f"{name}.k_up.weight", (heads, latent.rank, latent.plain_dim)
    yield f"{name}.v_up.weight", (heads, attention.value_dim, latent.rank)
    yield from _linear(f"{name}.output", width, heads * attention.value_dim, attention.output_bias)


def _recurrent(name: str, kind: Recurrent, width: int) -> Iterator[tuple[str, Shape]]:
    match kind:
        case DeltaNet():
            keys, values = kind.key_heads * kind.key_dim, kind.heads * kind.value_dim
            convolved = (("q", keys), ("k", keys), ("v", values))
            for part, rows in (*convolved, ("gate", values), ("beta", kind.heads), ("step", kind.heads)):
                yield f"{name}.{part}.weight", (rows, width)
            for part, rows in convolved:
                yield f"{name}.{part}_conv.weight", (rows, kind.taps)
            yield from _rates(name, kind.heads)
            yield from _norm(f"{name}.head_norm", kind.norm, kind.value_dim)
            yield f"{name}.output.weight", (width, values)
        case Mamba():
            inner, of_groups = kind.heads * kind.head_dim, kind.groups * kind.state
            parts = (("gate", inner), ("x", inner), ("b", of_groups), ("c", of_groups), ("step", kind.heads))
            for part, rows in parts:
                yield from _linear(f"{name}.{part}", rows, width, kind.bias)
            for part, rows in parts[1:4]:
                yield from _linear(f"{name}.{part}_conv", rows, kind.taps, kind.conv_bias)
            yield from _rates(name, kind.heads)
            yield f"{name}.skip.weight", (kind.heads,)
            if kind.norm:
                yield from _norm(f"{name}.output_norm", kind.norm, inner)
            yield from _linear(f"{name}.output", width, inner, kind.output_bias)
        case ShortConvolution():
            for part in ("b", "c", "x", "output"):
                yield from _linear(f"{name}.{part}", width, width, kind.bias)
            yield from _linear(f"{name}.conv", width, kind.taps, kind.bias)


def _rates(name: str, heads: int) -> Iterator[tuple[str, Shape]]:
    """The decay rate of each head's state, and the bias of its step size."""
    yield f"{name}.rate.weight", (heads,)
    yield f"{name}.rate.bias", (heads,)


def _feedforward(name: str, kind: FeedForward, width: int, experts: Shape = ()) -> Iterator[tuple[str, Shape]]:
    for part in ("gate", "up", "down") if kind.gated else ("up", "down"):
        rows, columns = (width, kind.width) if part == "down" else (kind.width, width)
        bias = kind.bias or (kind.output_bias and part == "down")
        yield from _linear(f"{name}.{part}", rows, columns, bias, experts)


def _mixture(name: str, kind: Mixture, width: int) -> Iterator[tuple[str, Shape]]:
    experts = kind.router.experts
    if kind.norms:
        yield from _norm(f"{name}.router_norm", kind.norms, width)
    yield from _linear(f"{name}.router", experts, width, kind.router.bias)
    if kind.router.correction:
        yield f"{name}.correction.bias", (experts,)
    if kind.router.expert_scale:
        yield f"{name}.expert_scale.weight", (experts,)
    if kind.norms:
        yield from _norm(f"{name}.experts_norm", kind.norms, width)
    yield from _feedforward(f"{name}.experts", kind.expert, width, (experts,))
    if kind.norms:
        yield from _norm(f"{name}.experts_post_norm", kind.norms, width)
    if kind.output_bias:
        yield f"{name}.experts_output.bias", (width,)
    if kind.shared:
        yield from _feedforward(f"{name}.shared", kind.shared, width)
        if kind.norms:
            yield from _norm(f"{name}.shared_post_norm", kind.norms, width)
    if kind.shared_gate:
        yield f"{name}.shared_gate.weight", (1, width)
