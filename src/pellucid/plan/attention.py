"""Attention: queries, keys and values, their norms and positions, and a gate of the result. (T, D) → (T, D)."""

from __future__ import annotations

from pellucid.errors import UnsupportedModel
from pellucid.model.spec import Attention
from pellucid.plan.builder import Builder
from pellucid.plan.cached_attention import HEADS, NOUNS, attend, layer_shape, output_projection, write_cache
from pellucid.plan.feedforward import apply
from pellucid.plan.heads import place, regroup
from pellucid.plan.latent_attention import latent_attention
from pellucid.plan.norm import norm
from pellucid.plan.position import rotate, scale_queries
from pellucid.runtime.cache_layout import LayerShape


def attention(builder: Builder, layer: int, kind: Attention, x: str, out: str) -> str:
    """out = attention(x), without the residual addition."""
    stage = builder.named(f"blocks.{layer}.attention")
    if kind.chunked and not (kind.causal and kind.window):
        raise UnsupportedModel(f"{stage}: attention in chunks must be causal and have a window")
    if kind.disentangled and (kind.heads != kind.kv_heads or not builder.spec.relative):
        raise UnsupportedModel(
            f"{stage}: relative positions need their vectors, and as many key/value heads as heads"
        )
    if kind.latent:
        return latent_attention(builder, stage, kind, kind.latent, x, out)
    shape = _cached_shape(builder, stage, kind)
    projected = _projected(builder, stage, kind, shape, x)
    if kind.clip:
        for name in projected:
            builder.clip(f"{stage}.{name}_clip", projected[name], kind.clip)
            builder.point(projected[name], f"{NOUNS[name]}, clipped")
    for name in projected:
        if name != "v" and kind.qk_norm and kind.qk_norm_whole:
            norm(builder, f"{stage}.{name}_norm", kind.qk_norm, projected[name])
            builder.point(projected[name], f"{NOUNS[name]}, normalised")
    dims = {
        "q": (kind.heads, kind.head_dim, shape.head_dim),
        "k": (kind.kv_heads, kind.head_dim, shape.head_dim),
        "v": (kind.kv_heads, kind.value_dim, shape.value_dim),
    }
    for name in projected:
        # Values that are copied from keys already have the padded heads of the cache.
        if not (name == "v" and kind.keys_as_values):
            projected[name] = regroup(builder, f"{stage}.{name}_heads", projected[name], *dims[name])
    norms = {"v": kind.v_norm, **dict.fromkeys("qk", None if kind.qk_norm_whole else kind.qk_norm)}
    for name, buffer in projected.items():
        if (norm_kind := norms[name]) is not None:
            count, width, _ = dims[name]
            norm(builder, f"{stage}.{name}_norm", norm_kind, buffer, parts=count, count=width)
            builder.point(buffer, f"{NOUNS[name]}, normalised by head")
    for name, buffer in projected.items():
        if kind.rotary and name != "v":
            rotate(builder, f"{stage}.{name}_rotary", kind.rotary, buffer, dims[name][0], shape.head_dim)
            builder.point(buffer, f"{NOUNS[name]}, rotated by their position")
    q = projected["q"]
    if kind.shared is None:
        # A source runs in one step, so the next layer of an encoder may overwrite its keys and values.
        cached = builder.cached_for_step(shape) if builder.prefix else builder.cached(shape)
        write_cache(builder, stage, kind, shape, cached, projected["k"], projected["v"])
        builder.cached_attention[layer] = cached
    else:
        cached = builder.cached_attention[kind.shared]
    if kind.query_scale:
        scale_queries(builder, f"{stage}.q_scale", kind.query_scale, q, kind.heads)
        builder.point(q, "queries, times a factor that depends on their position")
    attended = attend(builder, stage, cached, shape, kind, q)
    builder.point(attended, HEADS, name=f"{stage}.heads")
    attended = regroup(builder, f"{stage}.heads", attended, kind.heads, shape.value_dim, kind.value_dim)
    if kind.gate:
        width = kind.heads * kind.value_dim
        gate = builder.linear(f"{stage}.gate", x, width, "gate", bias=kind.bias)
        builder.point(gate, "the gates of the heads' outputs, before the sigmoid")
        apply(builder, f"{stage}.gated", "sigmoid", gate, attended, f"(T, {width})")
        attended = builder.point(gate, "the heads' outputs, times their gates")
    return output_projection(builder, stage, kind, attended, out)


def _projected(builder: Builder, stage: str, kind: Attention, shape: LayerShape, x: str) -> dict[str, str]:
    """The buffers of queries, keys and values by name. A block that shares keys and values has only queries."""
    widths = {
        "q": kind.heads * kind.head_dim,
        "k": kind.kv_heads * kind.head_dim,
        "v": kind.kv_heads * kind.value_dim,
    }
    names = "q" if kind.shared is not None else "qk" if kind.keys_as_values else "qkv"
    projected = {}
    for name in names:
        projected[name] = builder.linear(
            f"{stage}.{name}",
            x,
            widths[name],
            name,
            bias=kind.bias and (name != "k" or kind.key_bias),
            letters={"q": "H K", "k": "G K", "v": "G V"}[name],
            parts=kind.heads if name == "q" else kind.kv_heads,
            activation_bits=builder.sensitive_bits if name == "v" else 0,
        )
        builder.point(
            projected[name], NOUNS[name] if name == "v" else f"{NOUNS[name]}, before rotary positions"
        )
    if kind.keys_as_values and kind.shared is None:
        heads, width = kind.kv_heads, shape.value_dim
        v = builder.buffer("v", heads * width)
        projected["v"] = place(builder, f"{stage}.v_copy", projected["k"], heads, kind.value_dim, v, width)
        builder.view(v, "G V", heads, kind.value_dim, width)
    return projected


def _cached_shape(builder: Builder, stage: str, kind: Attention) -> LayerShape:
    """The shape of the layer in the cache. The width of a head is rounded up to a multiple of the KV dtype's unit."""
    if kind.shared is not None:
        if kind.shared not in builder.cached_attention:
            raise UnsupportedModel(f"{stage}: block {kind.shared} has no keys and values to share")
        shared = builder.layers[builder.cached_attention[kind.shared]]
        assert isinstance(shared, LayerShape)
        return shared
    return layer_shape(builder, stage, kind)
