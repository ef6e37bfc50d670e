"""The sizes of a model and of its blocks as plain values, for programs that draw a model from its spec."""

from __future__ import annotations

from typing import Any

from pellucid.model.spec import Block, FeedForward, Mixture, ModelSpec


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
