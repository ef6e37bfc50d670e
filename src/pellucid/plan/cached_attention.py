"""Attention over the cache, and cross attention of an encoder-decoder: (T, D) → (T, D)."""

from __future__ import annotations

from collections.abc import Mapping

from pellucid.errors import UnsupportedModel
from pellucid.kernels.attention import kv_layout
from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.matmul.packed_layout import round_up
from pellucid.kernels.matmul.quantize import MAX_ACTIVATION_BITS
from pellucid.model.spec import Attention, ModelSpec
from pellucid.plan.builder import Builder, heads
from pellucid.plan.norm import norm, regroup
from pellucid.plan.plan import At, BucketTable, Cache, CacheGroup, Operation, PageBytes, ScoreBias, Value, Vector
from pellucid.plan.points import AttentionMask, View
from pellucid.plan.position import alibi_table, bucket_table, position_scores
from pellucid.runtime.cache_layout import LayerShape

# Attention over the cache: writing keys and values, attending to them, and the output projection.

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


def write_cache(builder: Builder, stage: str, kind: Attention, shape: LayerShape, layer: int, k: str, v: str) -> None:
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
        Operation(f"{stage}.cache", kernel, fields, (k, v), (f"cache.{layer}",), printed, partitions=partitions)
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
    builder.point(attended, about, name=f"{stage}.pattern", unit="probability", kind="pattern", view=view, mask=mask)
    return attended


def output_projection(builder: Builder, stage: str, kind: Attention, attended: str, out: str) -> str:
    width = builder.spec.embedding.width
    return builder.linear(f"{stage}.output", attended, width, out, bias=kind.output_bias)


# Cross attention of an encoder-decoder: (T, D) → (T, D).
#
# The encoder projects its output to the keys and values of every decoder block, and writes them to the pages of the
# source. The decoder's queries attend to them. So a source is encoded once, for all steps and all answers.


def add_source_layers(builder: Builder, decoder: ModelSpec) -> None:
    """Add the layers that ``write_source`` writes to the encoder's cache. They have the numbers of ``_number``."""
    for layer, block in enumerate(decoder.blocks):
        if block.cross:
            _check(f"blocks.{layer}.cross", block.cross)
            builder.cached(layer_shape(builder, f"blocks.{layer}.cross", block.cross))


def write_source(builder: Builder, decoder: ModelSpec, x: str) -> None:
    """Write the keys and values of all cross attentions of the ``decoder`` to the encoder's cache."""
    for layer, block in enumerate(decoder.blocks):
        if kind := block.cross:
            stage, written = f"blocks.{layer}.cross", dict[str, str]()
            shape = layer_shape(builder, stage, kind)
            for name, width, padded in (("k", kind.head_dim, shape.head_dim), ("v", kind.value_dim, shape.value_dim)):
                bits = builder.sensitive_bits if name == "v" else 0
                count = kind.kv_heads
                out = builder.linear(
                    f"{stage}.{name}", x, count * width, name,
                    bias=kind.bias, letters=f"G {name.upper()}", parts=count, activation_bits=bits,
                )  # fmt: skip
                builder.point(out, f"{NOUNS[name]} of the source")
                out = regroup(builder, f"{stage}.{name}_heads", out, count, width, padded)
                if name == "k" and kind.qk_norm:
                    norm(builder, f"{stage}.k_norm", kind.qk_norm, out, parts=count, count=width)
                    builder.point(out, f"{NOUNS[name]} of the source, normalised by head")
                written[name] = out
            write_cache(builder, stage, kind, shape, _number(decoder, layer), written["k"], written["v"])


def cross_attention(builder: Builder, layer: int, kind: Attention, x: str, out: str) -> str:
    """out = cross attention(x), without the residual addition. The encoder has written keys and values."""
    stage = f"blocks.{layer}.cross"
    _check(stage, kind)
    shape = layer_shape(builder, stage, kind)
    width = kind.heads * kind.head_dim
    q = builder.linear(f"{stage}.q", x, width, "q", bias=kind.bias, letters="H K", parts=kind.heads)
    builder.point(q, NOUNS["q"])
    q = regroup(builder, f"{stage}.q_heads", q, kind.heads, kind.head_dim, shape.head_dim)
    if kind.qk_norm:
        norm(builder, f"{stage}.q_norm", kind.qk_norm, q, parts=kind.heads, count=kind.head_dim)
        builder.point(q, f"{NOUNS['q']}, normalised by head")
    attended = attend(builder, stage, _number(builder.spec, layer), shape, kind, q, cross=True)
    builder.point(attended, HEADS, name=f"{stage}.heads")
    attended = regroup(builder, f"{stage}.heads", attended, kind.heads, shape.value_dim, kind.value_dim)
    return output_projection(builder, stage, kind, attended, out)


def _check(stage: str, kind: Attention) -> None:
    """Refuse options of attention that cross attention does not have."""
    plain = Attention(
        kind.heads, kind.kv_heads, kind.head_dim, kind.scale, causal=False, qk_norm=kind.qk_norm,
        softcap=kind.softcap, bias=kind.bias, output_bias=kind.output_bias, value_dim=kind.value_dim,
        output_scale=kind.output_scale,
    )  # fmt: skip
    if kind != plain:
        wrong = [name for name in kind.__struct_fields__ if getattr(kind, name) != getattr(plain, name)]
        raise UnsupportedModel(f"{stage}: cross attention has no {', '.join(wrong)}")


def _number(decoder: ModelSpec, layer: int) -> int:
    """The number of a block's cross attention among the cached layers of a source."""
    return sum(block.cross is not None for block in decoder.blocks[:layer])
