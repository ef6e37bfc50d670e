"""A spec in words, and the sizes of a model and of its blocks as plain values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pellucid.model.positions import Learned
from pellucid.model.spec import (
    Activation,
    Block,
    DeltaNet,
    FeedForward,
    Mamba,
    Mixture,
    ModelSpec,
    Placement,
    Recurrent,
    ShortConvolution,
)

# The sizes of a model and of its blocks as plain values, for programs that draw a model from its spec.


def block_sizes(spec: ModelSpec) -> list[dict[str, Any]]:
    """The sizes of each block.

    ``width`` is the width D of the residual stream. ``heads``, ``kv_heads``, ``head_width`` and ``value_width`` are 0
    without attention, ``experts`` and ``active_experts`` 0 without a mixture, ``hidden`` (the width of the feed-forward
    or of an expert) 0 without either, ``window`` and ``softcap`` 0 without a limit. ``parallel``: attention and
    feed-forward read the same residual stream. ``scale`` (of attention scores) and ``causal`` are left out without
    attention, ``activation`` and ``gated`` without a feed-forward. ``cross`` has sizes of the attention to a source.
    """
    return [
        {"width": spec.embedding.width, **_attention(block), **_cross(block), **_feedforward(block)}
        for block in spec.blocks
    ]


def _attention(block: Block) -> dict[str, Any]:
    kind = block.attention
    sizes: dict[str, Any] = {
        "heads": kind.heads if kind else 0,
        "kv_heads": kind.kv_heads if kind else 0,
        "head_width": kind.head_dim if kind else 0,
        "value_width": kind.value_dim if kind else 0,
        "window": kind.window if kind else 0,
        "softcap": kind.softcap if kind else 0.0,
        "recurrent": block.recurrent is not None,
        "parallel": block.is_parallel,
    }
    return {**sizes, "scale": kind.scale, "causal": kind.causal} if kind else sizes


def _cross(block: Block) -> dict[str, Any]:
    names = ("heads", "kv_heads", "softcap", "scale")
    return {"cross": {name: getattr(block.cross, name) for name in names}} if block.cross else {}


def _feedforward(block: Block) -> dict[str, Any]:
    kind = block.feedforward
    mixture = kind if isinstance(kind, Mixture) else None
    inner: FeedForward | None = kind.expert if isinstance(kind, Mixture) else kind
    sizes: dict[str, Any] = {
        "mixture": mixture is not None,
        "experts": mixture.router.experts if mixture else 0,
        "active_experts": mixture.router.chosen if mixture else 0,
        "hidden": inner.width if inner else 0,
    }
    if inner:
        sizes |= {"activation": inner.activation, "gated": inner.gated}
    return sizes


def model_sizes(spec: ModelSpec) -> dict[str, Any]:
    """Numbers of a whole model: ``norm`` and ``norm_epsilon`` of its norms, and the factor of its embeddings.

    With a head: ``logit_scale`` and ``logit_softcap`` (0: not capped). The norm is left out if the blocks have several.
    """
    norms = {(block.norm.kind, block.norm.eps) for block in spec.blocks}
    if spec.final_norm:
        norms.add((spec.final_norm.kind, spec.final_norm.eps))
    sizes: dict[str, Any] = {"embedding_factor": spec.embedding.scale}
    if len(norms) == 1:
        ((sizes["norm"], sizes["norm_epsilon"]),) = norms
    if spec.head:
        sizes |= {"logit_scale": spec.head.scale, "logit_softcap": spec.head.softcap}
    return sizes


# Describes the parts of a spec in words.

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

RECURRENT: Mapping[type, str] = {DeltaNet: "Gated DeltaNet", Mamba: "Mamba-2", ShortConvolution: "short convolutions"}


def parts(spec: ModelSpec) -> list[str]:
    """The parts of a model in words, in the order of computation."""
    inside = [*_describe_attention(spec), *_recurrent(spec), *_describe_feedforward(spec)]
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


def _describe_attention(spec: ModelSpec) -> Iterator[str]:
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


def _describe_feedforward(spec: ModelSpec) -> Iterator[str]:
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
