"""Describes the parts of a spec in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pellucid.model.positions import Learned
from pellucid.model.spec import (
    Activation,
    DeltaNet,
    FeedForward,
    Mamba,
    Mixture,
    ModelSpec,
    Placement,
    Recurrent,
    ShortConvolution,
)

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

RECURRENT: Mapping[type, str] = {
    DeltaNet: "Gated DeltaNet",
    Mamba: "Mamba-2",
    ShortConvolution: "short convolutions",
}


def parts(spec: ModelSpec) -> list[str]:
    """The parts of a model in words, in the order of computation."""
    inside = [*_attention(spec), *_recurrent(spec), *_feedforward(spec)]
    encoder = ["encoder and decoder"] if spec.encoder else []
    return [*encoder, *_positions(spec), *_blocks(spec), *inside, *_head(spec)]


def recurrent(kind: Recurrent) -> str:
    """The name of a kind of recurrent layer: "Mamba-2"."""
    return RECURRENT[type(kind)]


def feedforward(kind: FeedForward) -> str:
    """The activation function of a feed-forward: "gated SiLU"."""
    return f"{'gated ' if kind.gated else ''}{ACTIVATIONS[kind.activation]}"


def _positions(spec: ModelSpec) -> Iterator[str]:
    kinds = [attention.rotary for attention in spec.attentions]
    if spec.position:
        yield "learned positions" if isinstance(spec.position, Learned) else "sinusoidal positions"
    if any(attention.alibi for attention in spec.attentions):
        yield "ALiBi"
    if any(attention.disentangled for attention in spec.attentions):
        yield "disentangled attention over relative positions"
    if any(attention.relative for attention in spec.attentions):
        yield "relative positions in buckets"
    if any(kinds):
        first = next(rotary for rotary in kinds if rotary)
        head_dim = spec.attention.head_dim
        part = f" of {first.dims / head_dim:.0%} of a head" if first.dims < head_dim else ""
        yield f"rotary positions{part}" + ("" if all(kinds) else " in some layers")


def _blocks(spec: ModelSpec) -> Iterator[str]:
    block = spec.blocks[0]
    yield PLACEMENTS[block.placement].format("RMS" if block.norm.kind == "rms" else "layer")
    if block.residual_scale != 1 or spec.embedding.scale != 1:
        yield "multipliers"
    if spec.embedding.narrow:
        yield "narrow embeddings"
    if spec.convolution:
        yield "a convolution of the embeddings"
    if spec.per_layer:
        yield "per-layer embeddings"
    if spec.altup:
        yield "several residual streams"
    if block.laurel:
        yield "learned residuals"
    if block.scalar:
        yield "scaled outputs of blocks"


def _attention(spec: ModelSpec) -> Iterator[str]:
    kinds = spec.attentions
    for has, words in (
        (any(kind.bias for kind in kinds), "biases of queries, keys and values"),
        (any(kind.qk_norm and not kind.qk_norm_whole for kind in kinds), "query and key norms by head"),
        (any(kind.qk_norm and kind.qk_norm_whole for kind in kinds), "query and key norms over all heads"),
        (any(kind.window and not kind.chunked for kind in kinds), "windows"),
        (any(kind.chunked for kind in kinds), "attention within chunks"),
        (any(kind.query_scale for kind in kinds), "queries scaled by position"),
        (any(kind.clip for kind in kinds), "clipped queries, keys and values"),
        (any(kind.softcap for kind in kinds), "capped scores"),
        (any(kind.sinks for kind in kinds), "sinks"),
        (any(kind.gate for kind in kinds), "output gates"),
        (any(kind.latent for kind in kinds), "latent attention"),
        (any(kind.keys_as_values for kind in kinds), "keys used as values"),
        (any(kind.shared is not None for kind in kinds), "keys and values of earlier layers"),
    ):
        if has:
            yield words


def _recurrent(spec: ModelSpec) -> Iterator[str]:
    kinds = dict.fromkeys(recurrent(block.recurrent) for block in spec.blocks if block.recurrent)
    beside = any(block.recurrent and block.attention for block in spec.blocks)
    for kind in kinds:
        yield f"{kind} beside attention" if beside else f"{kind} in most layers"


def _feedforward(spec: ModelSpec) -> Iterator[str]:
    kinds = [block.feedforward for block in spec.blocks if block.feedforward]
    mixture = next((kind for kind in kinds if isinstance(kind, Mixture)), None)
    if mixture is None:
        yield from dict.fromkeys(feedforward(kind) for kind in kinds if isinstance(kind, FeedForward))
        if any(isinstance(kind, FeedForward) and kind.sparsity for kind in kinds):
            yield "sparse gates"
        return
    yield f"{feedforward(mixture.expert)} experts by {mixture.router.score}"
    if mixture.shared:
        yield "a shared expert"
    if mixture.input_weights:
        yield "weighted inputs of experts"
    if mixture.norms:
        yield "norms of router and experts"
    if not all(isinstance(kind, Mixture) for kind in kinds):
        yield "some layers without experts"


def _head(spec: ModelSpec) -> Iterator[str]:
    if spec.head and spec.head.softcap:
        yield "capped logits"
    if spec.decision:
        yield "decision blocks"
    if spec.pooling:
        yield "pooling"
