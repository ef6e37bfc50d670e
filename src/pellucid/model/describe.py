"""The parts of a spec, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pellucid.model.spec import Activation, FeedForward, Learned, Mixture, ModelSpec, Placement

PLACEMENTS: Mapping[Placement, str] = {
    "pre": "{} norms before",
    "post": "{} norms after",
    "sandwich": "{} norms before and after",
    "output": "{} norms of outputs",
    "parallel": "parallel blocks, two {} norms",
    "shared": "parallel blocks, one {} norm",
}
ACTIVATIONS: Mapping[Activation, str] = {
    "silu": "SiLU",
    "gelu_tanh": "GELU (tanh)",
    "gelu": "GELU",
    "relu": "ReLU",
    "relu2": "squared ReLU",
    "clamped_silu": "clamped SiLU",
}


def parts(spec: ModelSpec) -> list[str]:
    """The parts that a model is made of, in the order of the pipeline."""
    return [*_positions(spec), *_blocks(spec), *_attention(spec), *_feedforward(spec), *_head(spec)]


def feedforward(kind: FeedForward) -> str:
    """The function of a feed-forward: "gated SiLU"."""
    return f"{'gated ' if kind.gated else ''}{ACTIVATIONS[kind.activation]}"


def _positions(spec: ModelSpec) -> Iterator[str]:
    kinds = [block.attention.rotary for block in spec.blocks]
    if spec.position:
        yield "learned positions" if isinstance(spec.position, Learned) else "sinusoidal positions"
    if any(block.attention.alibi for block in spec.blocks):
        yield "ALiBi"
    if any(kinds):
        first = next(rotary for rotary in kinds if rotary)
        head_dim = spec.blocks[0].attention.head_dim
        part = f" of {first.dims / head_dim:.0%} of a head" if first.dims < head_dim else ""
        yield f"rotary positions{part}" + ("" if all(kinds) else " in some layers")


def _blocks(spec: ModelSpec) -> Iterator[str]:
    block = spec.blocks[0]
    yield PLACEMENTS[block.placement].format("RMS" if block.norm.kind == "rms" else "layer")
    if block.residual_scale != 1 or spec.embedding.scale != 1:
        yield "multipliers"


def _attention(spec: ModelSpec) -> Iterator[str]:
    kinds = [block.attention for block in spec.blocks]
    for has, words in (
        (any(kind.bias for kind in kinds), "biases of queries, keys and values"),
        (any(kind.qk_norm and not kind.qk_norm_whole for kind in kinds), "norms of each head"),
        (any(kind.qk_norm and kind.qk_norm_whole for kind in kinds), "norms of all heads"),
        (any(kind.window for kind in kinds), "windows"),
        (any(kind.softcap for kind in kinds), "capped scores"),
        (any(kind.sinks for kind in kinds), "sinks"),
    ):
        if has:
            yield words


def _feedforward(spec: ModelSpec) -> Iterator[str]:
    kinds = [block.feedforward for block in spec.blocks]
    mixture = next((kind for kind in kinds if isinstance(kind, Mixture)), None)
    if mixture is None:
        assert isinstance(kinds[0], FeedForward)
        yield feedforward(kinds[0])
        return
    yield f"{feedforward(mixture.expert)} experts by {mixture.router.score}"
    if mixture.shared:
        yield "a shared expert"
    if not all(isinstance(kind, Mixture) for kind in kinds):
        yield "first layers without experts"


def _head(spec: ModelSpec) -> Iterator[str]:
    if spec.head and spec.head.softcap:
        yield "capped logits"
    if spec.pooling:
        yield "pooling"
