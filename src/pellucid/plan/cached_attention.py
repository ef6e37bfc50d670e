"""Attention over the cache: writing keys and values, attending to them, and the output projection."""

from __future__ import annotations

from collections.abc import Mapping

from pellucid.errors import UnsupportedModel
from pellucid.kernels.attention import kv_layout
from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.matmul.packed_layout import round_up
from pellucid.kernels.matmul.quantize import MAX_ACTIVATION_BITS
from pellucid.model.spec import Attention
from pellucid.plan.builder import Builder, heads
from pellucid.plan.plan import (
    At,
    BucketTable,
    Cache,
    CacheGroup,
    Operation,
    PageBytes,
    ScoreBias,
    Value,
    Vector,
)
from pellucid.plan.points import AttentionMask, View
from pellucid.plan.position import alibi_table, bucket_table
from pellucid.plan.relative import position_scores
from pellucid.runtime.cache_layout import LayerShape

NOUNS = {"q": "queries", "k": "keys", "v": "values"}
"""Descriptions of queries, keys and values."""
HEADS = "the output of each head, before the output projection"


def kv_dtype_of(builder: Builder, stage: str, kind: Attention) -> str:
    """The dtype of keys and values: the dtype of the builder, or a default for the activations and weights.

    The default is float32 for 24-bit activations, because float32 rounds nothing. The default is float16 for
    floating-point weights, and for keys with biases: biases can be large, and rounding such keys to the 8 bits of
    bfloat16 changes the scores (Qwen 2.5). In all other cases the default is bfloat16, because 8-bit activations have a
    larger error than bfloat16 products. The keys of encoders have small biases.
    """
    if builder.kv_dtype:
        return builder.kv_dtype
    if builder.activation_bits == MAX_ACTIVATION_BITS:
        return "f32"
    large_keys = kind.bias and kind.causal
    return "f16" if large_keys or builder.layouts[f"{stage}.q.weight"].is_float else "bf16"


def layer_shape(builder: Builder, stage: str, kind: Attention) -> LayerShape:
    """The shape of a layer in the cache. The width of a head is rounded up to a multiple of the KV dtype's unit."""
    if kind.heads % kind.kv_heads:
        raise UnsupportedModel(
            f"{stage}: the number of heads, {kind.heads}, is not a multiple of {kind.kv_heads} key/value heads"
        )
    kv_dtype = kv_dtype_of(builder, stage, kind)
    unit = kv_layout.unit(kv_dtype)
    window = kind.window if kind.causal else 0
    head_dim, value_dim = round_up(kind.head_dim, unit), round_up(kind.value_dim, unit)
    return LayerShape(kind.kv_heads, head_dim, value_dim, kv_dtype, window, kind.chunked and window > 0)


def write_cache(
    builder: Builder, stage: str, kind: Attention, shape: LayerShape, layer: int, k: str, v: str
) -> None:
    """Write keys and values to a layer of the cache."""
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


def attend(
    builder: Builder,
    stage: str,
    layer: int,
    layer_shape: LayerShape,
    kind: Attention,
    q: str,
    width: int = 0,
    *,
    cross: bool = False,
) -> str:
    """softmax(q Kᵀ) V over the cache. The output of a head has ``width`` values, by default the width of its values.

    In ``cross`` attention ``layer`` is a layer in the cache of sources.
    """
    attended = builder.buffer("attended", kind.heads * layer_shape.value_dim)
    letters = "H K" if width else "H V"
    builder.view(attended, letters, kind.heads, width or kind.value_dim, layer_shape.value_dim)
    name = alibi_table(builder, kind) if kind.alibi else None
    if kind.relative:
        name = bucket_table(builder, stage, kind, kind.relative)
    table = builder.tables[name] if name else None
    assert not isinstance(table, BucketTable)
    fields: dict[str, Value] = {
        "q": At(q),
        "heads": kind.heads,
        "kv_heads": kind.kv_heads,
        "keys": Cache(layer, "keys", cross),
        "values": Cache(layer, "values", cross),
        "group": CacheGroup(layer, cross),
        "page_bytes": PageBytes(layer, cross),
        "scale": kind.scale,
        "softcap": kind.softcap,
        "causal": int(kind.causal),
        "window": kind.window,
        "chunked": int(kind.chunked),
        "bias": ScoreBias(name) if name else 0,
        "bias_stride": 4 * table.columns if table else 0,
        "bias_step": 4 * table.by_distance if table else 0,
        "sinks": Vector(f"{stage}.sinks.weight") if kind.sinks else 0,
        "cross": int(cross),
        "out": At(attended),
        "quantized": 0,
    }
    shape = f"(T, {kind.heads}, {kind.value_dim})" + (f", window {kind.window}" if kind.window else "")
    positions: Mapping[str, Value] = {}
    if kind.disentangled:
        positions = position_scores(builder, stage, kind, kind.disentangled, layer_shape)
    tables = (value.buffer for value in positions.values() if isinstance(value, At))
    kernel = KernelKey(
        "disentangled_attention" if kind.disentangled else "attention",
        head_dim=layer_shape.head_dim,
        value_dim=layer_shape.value_dim,
        kv_dtype=layer_shape.kv_dtype,
        activation_bits=8,
    )
    reads = (q, *([] if cross else [f"cache.{layer}"]), *tables)
    builder.emit(Operation(f"{stage}.attend", kernel, {**fields, **positions}, reads, (attended,), shape))
    view = View(kind.heads, 0, 0, 0, "H T")
    mask = AttentionMask(kind.causal, kind.window, kind.chunked, cross)
    of_source = ", for the tokens of the source" if cross else ""
    about = f"attention scores of each head, before the softmax{of_source}"
    builder.point(attended, about, name=f"{stage}.scores", kind="scores", view=view, mask=mask)
    about = f"attention weights of each head, after the softmax{of_source}"
    builder.point(
        attended, about, name=f"{stage}.pattern", unit="probability", kind="pattern", view=view, mask=mask
    )
    return attended


def output_projection(builder: Builder, stage: str, kind: Attention, attended: str, out: str) -> str:
    width = builder.spec.embedding.width
    return builder.linear(f"{stage}.output", attended, width, out, bias=kind.output_bias)
