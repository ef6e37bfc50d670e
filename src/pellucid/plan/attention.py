"""Attention: each token gathers values from the tokens that it sees. (T, D) → (T, D)."""

from __future__ import annotations

from pellucid.errors import UnsupportedModel
from pellucid.kernels.attention import kv_layout
from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.matmul.packed_layout import round_up
from pellucid.kernels.matmul.quantize import FINEST
from pellucid.model.spec import Attention
from pellucid.plan.builder import COUNT, Builder, heads
from pellucid.plan.feedforward import apply
from pellucid.plan.norm import norm
from pellucid.plan.plan import At, Cache, CacheGroup, Operation, PageBytes, Value, Vector
from pellucid.plan.position import alibi_bias, rotate
from pellucid.runtime.cache_layout import LayerShape


def attention(builder: Builder, layer: int, kind: Attention, x: str, out: str) -> str:
    """out = attention(x), not yet added to the residual stream."""
    stage = f"blocks.{layer}.attention"
    shape = _cached_shape(builder, stage, kind)
    q = builder.linear(f"{stage}.q", x, f"{stage}.q", kind.heads * kind.head_dim, "q", bias=kind.bias)
    k = builder.linear(f"{stage}.k", x, f"{stage}.k", kind.kv_heads * kind.head_dim, "k", bias=kind.bias)
    v = builder.linear(f"{stage}.v", x, f"{stage}.v", kind.kv_heads * kind.value_dim, "v", bias=kind.bias)
    if kind.qk_norm and kind.qk_norm_whole:
        q = norm(builder, f"{stage}.q_norm", f"{stage}.q_norm", kind.qk_norm, q, q)
        k = norm(builder, f"{stage}.k_norm", f"{stage}.k_norm", kind.qk_norm, k, k)
    q = regroup(builder, f"{stage}.q_heads", q, kind.heads, kind.head_dim, shape.head_dim)
    k = regroup(builder, f"{stage}.k_heads", k, kind.kv_heads, kind.head_dim, shape.head_dim)
    v = regroup(builder, f"{stage}.v_heads", v, kind.kv_heads, kind.value_dim, shape.value_dim)
    for name, of, heads_ in (("q", q, kind.heads), ("k", k, kind.kv_heads)):
        if kind.qk_norm and not kind.qk_norm_whole:
            at = f"{stage}.{name}_norm"
            norm(builder, at, at, kind.qk_norm, of, of, parts=heads_, count=kind.head_dim)
    for name, of, heads_ in (("q", q, kind.heads), ("k", k, kind.kv_heads)):
        if kind.rotary:
            rotate(builder, f"{stage}.{name}_rotary", kind.rotary, of, heads_, shape.head_dim)
    cached = _write_cache(builder, stage, kind, shape, k, v)
    attended = _attend(builder, stage, cached, shape, kind, q)
    attended = regroup(builder, f"{stage}.heads", attended, kind.heads, shape.value_dim, kind.value_dim)
    if kind.gate:
        width = kind.heads * kind.value_dim
        gate = builder.linear(f"{stage}.gate", x, f"{stage}.gate", width, "gate", bias=kind.bias)
        apply(builder, f"{stage}.gated", "sigmoid", gate, attended, f"(T, {width})")
        attended = gate
    return builder.linear(
        f"{stage}.output",
        attended,
        f"{stage}.output",
        builder.spec.embedding.width,
        out,
        bias=kind.output_bias,
    )


def _cached_shape(builder: Builder, stage: str, kind: Attention) -> LayerShape:
    """The layer's keys and values in the cache, whose heads are whole vectors."""
    if kind.heads % kind.kv_heads:
        raise UnsupportedModel(
            f"{stage}: {kind.heads} heads with {kind.kv_heads} key/value heads; these must divide them"
        )
    kv_dtype = builder.kv_dtype or _kv_dtype(builder, stage, kind)
    unit = kv_layout.unit(kv_dtype)
    window = kind.window if kind.causal and not kind.cross else 0
    head_dim, value_dim = round_up(kind.head_dim, unit), round_up(kind.value_dim, unit)
    return LayerShape(kind.kv_heads, head_dim, value_dim, kv_dtype, window)


def regroup(builder: Builder, stage: str, x: str, count: int, width: int, wanted: int) -> str:
    """(T, count, width) as (T, count, wanted): with zeros behind each head, or without them."""
    if width == wanted:
        return x
    out = builder.buffer(f"{x}.heads", count * wanted)
    fields: dict[str, Value] = {
        "x": At(x),
        "x_stride": 4 * builder.width_of(x),
        "width": width,
        "out": At(out),
        "out_stride": 4 * builder.width_of(out),
        "out_width": wanted,
        "heads": count,
        "rows": COUNT["tokens"],
    }
    shape = f"(T, {count}, {width}) → (T, {count}, {wanted})"
    partitions = {out: heads(count)}
    builder.emit(Operation(stage, KernelKey("heads"), fields, (x,), (out,), shape, partitions=partitions))
    return out


def _write_cache(builder: Builder, stage: str, kind: Attention, shape: LayerShape, k: str, v: str) -> int:
    """Write keys and values into the cache's pages. Returns the index of the layer in the cache."""
    layer = builder.cached(shape)
    fields: dict[str, Value] = {
        "k": At(k),
        "v": At(v),
        "kv_heads": kind.kv_heads,
        "head_dim": shape.head_dim,
        "value_dim": shape.value_dim,
        "keys": Cache(layer, "keys"),
        "values": Cache(layer, "values"),
        "group": CacheGroup(layer),
        "page_bytes": PageBytes(layer),
    }
    printed = f"(T, {kind.kv_heads}, {kind.head_dim}) {shape.kv_dtype}"
    partitions = dict.fromkeys((k, v), heads(kind.kv_heads))
    kernel = KernelKey("cache_write", kv_dtype=shape.kv_dtype)
    builder.emit(
        Operation(
            f"{stage}.cache", kernel, fields, (k, v), (f"cache.{layer}",), printed, partitions=partitions
        )
    )
    return layer


def _kv_dtype(builder: Builder, stage: str, kind: Attention) -> str:
    """The type of keys and values if the caller leaves it open.

    float32 with activations of 16 bits, because it rounds nothing; bfloat16 with activations of 8 bits, whose error is
    larger than that of bfloat16 products; float16 with floating-point weights, and where keys have biases: these can be
    so large that the rounding of a key to 8 bits is seen in the scores (Qwen 2.5).
    """
    if builder.activation_bits == FINEST:
        return "f32"
    return "f16" if kind.bias or builder.layouts[f"{stage}.q.weight"].is_float else "bf16"


def _attend(
    builder: Builder, stage: str, layer: int, layer_shape: LayerShape, kind: Attention, q: str
) -> str:
    """softmax(q Kᵀ) V."""
    attended = builder.buffer("attended", kind.heads * layer_shape.value_dim)
    bias = alibi_bias(builder, kind.heads, kind.causal) if kind.alibi else None
    fields: dict[str, Value] = {
        "q": At(q),
        "heads": kind.heads,
        "kv_heads": kind.kv_heads,
        "keys": Cache(layer, "keys"),
        "values": Cache(layer, "values"),
        "group": CacheGroup(layer),
        "page_bytes": PageBytes(layer),
        "scale": kind.scale,
        "softcap": kind.softcap,
        "causal": int(kind.causal),
        "window": kind.window,
        "bias": bias or 0,
        "bias_stride": 4 * builder.tables[bias.table].columns if bias else 0,
        "sinks": Vector(f"{stage}.sinks.weight") if kind.sinks else 0,
        "cross": int(kind.cross),
        "out": At(attended),
        "quantized": 0,
    }
    shape = f"(T, {kind.heads}, {kind.value_dim})" + (f", window {kind.window}" if kind.window else "")
    kernel = KernelKey(
        "attention",
        head_dim=layer_shape.head_dim,
        value_dim=layer_shape.value_dim,
        kv_dtype=layer_shape.kv_dtype,
        activation_bits=8,
    )
    builder.emit(Operation(f"{stage}.attend", kernel, fields, (q, f"cache.{layer}"), (attended,), shape))
    return attended
