"""Attention: queries, keys and values, their norms and positions, the cache, a gate; latent and cross attention."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from pellucid.errors import UnsupportedModel
from pellucid.kernels.attention import kv_layout
from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.matmul.layouts import BLOCK, ROWS, round_up
from pellucid.kernels.matmul.quantize import MAX_ACTIVATION_BITS
from pellucid.model.spec import Attention, Latent, ModelSpec
from pellucid.plan.builder import NO_BIAS, Builder, heads
from pellucid.plan.feedforward import apply
from pellucid.plan.norm import norm, place, regroup
from pellucid.plan.plan import At, BucketTable, Cache, CacheGroup, PageBytes, ScoreBias, Value, Vector, Weights
from pellucid.plan.points import AttentionMask, View
from pellucid.plan.position import alibi_table, bucket_table, position_scores, rotate, scale_queries
from pellucid.runtime.cache_layout import LayerShape

# Attention over the cache: writing keys and values, attending to them, and the output projection.

NOUNS = {"q": "queries", "k": "keys", "v": "values"}
"""Descriptions of queries, keys and values."""
HEADS = "the output of each head, before the output projection"
ROTARY_INPUT = "the part of the {} that is rotated, before the rotation"


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
    fields: dict[str, Value] = {"k": At(k), "v": At(v), **_cached(layer)}
    fields |= {"kv_heads": kind.kv_heads, "head_dim": shape.head_dim, "value_dim": shape.value_dim}
    printed = f"(T, {kind.kv_heads}, {kind.head_dim}) {shape.kv_dtype}"
    partitions = dict.fromkeys((k, v), heads(kind.kv_heads))
    kernel = KernelKey("cache_write", kv_dtype=shape.kv_dtype)
    builder.emit(f"{stage}.cache", kernel, fields, (k, v), (f"cache.{layer}",), printed, partitions=partitions)


def _cached(layer: int, of_source: bool = False) -> dict[str, Value]:
    """The fields of a layer's pages."""
    keys, values = Cache(layer, "keys", of_source), Cache(layer, "values", of_source)
    group, page_bytes = CacheGroup(layer, of_source), PageBytes(layer, of_source)
    return {"keys": keys, "values": values, "group": group, "page_bytes": page_bytes}


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
    fields: dict[str, Value] = {"q": At(q), "heads": kind.heads, "kv_heads": kind.kv_heads, **_cached(layer, cross)}
    fields |= {"scale": kind.scale, "softcap": kind.softcap, "cross": int(cross)}
    fields |= {"causal": int(kind.causal), "window": kind.window, "chunked": int(kind.chunked)}
    fields |= {"bias": ScoreBias(name) if name else 0, "bias_stride": 4 * table.columns if table else 0}
    fields |= {"bias_step": 4 * table.by_distance if table else 0, "out": At(attended), "quantized": 0}
    fields["sinks"] = Vector(f"{stage}.sinks.weight") if kind.sinks else 0
    shape = f"(T, {kind.heads}, {kind.value_dim})" + (f", window {kind.window}" if kind.window else "")
    positions: Mapping[str, Value] = {}
    if kind.disentangled:
        positions = position_scores(builder, stage, kind, kind.disentangled, layer_shape)
    tables = (value.buffer for value in positions.values() if isinstance(value, At))
    parameters = {name: getattr(layer_shape, name) for name in ("head_dim", "value_dim", "kv_dtype")}
    kernel_name = "disentangled_attention" if kind.disentangled else "attention"
    kernel = KernelKey(kernel_name, **parameters, activation_bits=8)
    reads = (q, *([] if cross else [f"cache.{layer}"]), *tables)
    builder.emit(f"{stage}.attend", kernel, {**fields, **positions}, reads, (attended,), shape)
    view = View(kind.heads, 0, 0, 0, "H T")
    mask = AttentionMask(kind.causal, kind.window, kind.chunked, cross)
    of_source = ", for the tokens of the source" if cross else ""
    about = f"attention scores of each head, before the softmax{of_source}"
    builder.point(attended, about, name=f"{stage}.scores", kind="scores", view=view, mask=mask)
    about = f"attention weights of each head, after the softmax{of_source}"
    builder.point(attended, about, name=f"{stage}.pattern", unit="probability", kind="pattern", view=view, mask=mask)
    return attended


def output_projection(builder: Builder, stage: str, kind: Attention, attended: str, out: str) -> str:
    return builder.linear(f"{stage}.output", attended, builder.spec.embedding.width, out, bias=kind.output_bias)


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
                out = builder.linear(
                    f"{stage}.{name}", x, kind.kv_heads * width, name,
                    bias=kind.bias, letters=f"G {name.upper()}", parts=kind.kv_heads, activation_bits=bits,
                )  # fmt: skip
                builder.point(out, f"{NOUNS[name]} of the source")
                out = regroup(builder, f"{stage}.{name}_heads", out, kind.kv_heads, width, padded)
                if name == "k" and kind.qk_norm:
                    norm(builder, f"{stage}.k_norm", kind.qk_norm, out, parts=kind.kv_heads, count=width)
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


# Latent attention: the cache has one vector per token, which all heads share. (T, D) → (T, D).


def latent_attention(builder: Builder, stage: str, kind: Attention, latent: Latent, x: str, out: str) -> str:
    """Latent attention in its absorbed form (DeepSeek-AI 2024, DeepSeek-V2, section 2.1).

    All heads share the key of a token: its latent vector, followed by a rotary part. The value is the latent vector.
    Each head multiplies its query by the head's up-projection of keys, and its attention output by the head's
    up-projection of values. So the cache holds a single head, and each key is read once for all heads.
    """
    heads, rank, rotated = kind.heads, latent.rank, kind.head_dim - latent.plain_dim
    if kind.rotary is None or kind.qk_norm or kind.gate or kind.query_scale or kind.clip:
        raise UnsupportedModel(
            f"{stage}: latent attention needs rotary positions; norms of heads, an output gate, a query scale and "
            "a clip are not supported"
        )
    shape = layer_shape(builder, stage, replace(kind, kv_heads=1, head_dim=rank + rotated, value_dim=rank))
    key, value = shape.head_dim, shape.value_dim
    source = x
    if latent.query_rank:
        source = builder.linear(f"{stage}.q_down", x, latent.query_rank, "q_down", bias=kind.bias)
        builder.point(source, "the latent vector of the queries of all heads")
        norm(builder, f"{stage}.q_down_norm", latent.norm, source)
        builder.point(source, "the latent vector of the queries of all heads, normalised")
    q_plain = builder.linear(f"{stage}.q", source, heads * latent.plain_dim, "q", letters="H K", parts=heads)
    builder.point(q_plain, "the part of the queries that has no position")
    q_rotary = builder.linear(f"{stage}.q_rotary", source, heads * rotated, "q_rotary", letters="H K", parts=heads)
    builder.point(q_rotary, ROTARY_INPUT.format("queries"), name=f"{stage}.q_rotary_input")
    latent_vector = builder.linear(f"{stage}.latent", x, rank, "latent", bias=kind.bias)
    builder.point(latent_vector, "the latent vector of the keys and values of all heads")
    norm(builder, f"{stage}.latent_norm", latent.norm, latent_vector)
    builder.point(latent_vector, "the latent vector of the keys and values of all heads, normalised")
    k_rotary = builder.linear(f"{stage}.k_rotary", x, rotated, "k_rotary", bias=kind.bias)
    builder.point(k_rotary, ROTARY_INPUT.format("keys"), name=f"{stage}.k_rotary_input")
    builder.view(k_rotary, "G K", 1, rotated)
    q_rotary = regroup(builder, f"{stage}.q_rotary_heads", q_rotary, heads, rotated, round_up(rotated, ROWS))
    for part, buffer, count in (("q", q_rotary, heads), ("k", k_rotary, 1)):
        rotate(builder, f"{stage}.{part}_rotated", kind.rotary, buffer, count, round_up(rotated, ROWS))
        builder.point(buffer, f"{NOUNS[part]}, rotated by their position", name=f"{stage}.{part}_rotary")
    q = _by_head(builder, f"{stage}.k_up", q_plain, heads, latent.plain_dim, rank, "q_latent", "H K", key)
    builder.point(q, "queries in the space of the latent vectors")
    place(builder, f"{stage}.q_joined", q_rotary, heads, round_up(rotated, ROWS), q, key, offset=rank)
    k = place(builder, f"{stage}.k_latent", latent_vector, 1, rank, builder.buffer("k", key), key)
    place(builder, f"{stage}.k_joined", k_rotary, 1, rotated, k, key, offset=rank)
    v = regroup(builder, f"{stage}.v_latent", latent_vector, 1, rank, value)
    cached = builder.cached(shape)
    write_cache(builder, stage, kind, shape, cached, k, v)
    attended = attend(builder, stage, cached, shape, kind, q, rank)
    builder.point(attended, "the output of each head, in the space of the latent vectors", name=f"{stage}.latent_heads")
    attended = regroup(builder, f"{stage}.heads", attended, heads, value, rank)
    gathered = _by_head(builder, f"{stage}.v_up", attended, heads, rank, kind.value_dim, "gathered", "H V")
    builder.point(gathered, HEADS, name=f"{stage}.heads")
    width = round_up(kind.value_dim, ROWS)
    gathered = regroup(builder, f"{stage}.v_heads", gathered, heads, width, kind.value_dim)
    return output_projection(builder, stage, kind, gathered, out)


def _by_head(
    builder: Builder, stage: str, x: str, count: int, width: int, features: int, out: str, letters: str, stride: int = 0
) -> str:
    """Multiply each head of x (T, count, width) by its matrix in the slot ``stage``.weight (count, features, width).

    The heads of the result have a stride of ``stride`` values, by default ``features`` rounded up to whole SIMD
    vectors.
    """
    packed, slot = builder.layouts[f"{stage}.weight"], f"{stage}.weight"
    padded = round_up(width, ROWS if packed.is_float else BLOCK)
    x = regroup(builder, f"{stage}.input", x, count, width, padded)
    stride = stride or round_up(features, ROWS)
    builder.buffer(out, count * stride)
    builder.view(out, letters, count, features, stride)
    each = packed.matrix_bytes(features, padded)
    fields: dict[str, Value] = {"weights": Weights(slot, count), "heads": count, "head_bytes": each, "columns": padded}
    fields |= {"groups": round_up(features, ROWS) // ROWS, "group_bytes": packed.group_bytes(padded)}
    fields |= {"out": At(out), "out_stride": 4 * builder.width_of(out), "out_head": 4 * stride, "zeros": NO_BIAS}
    kernel, source, head_bytes = builder.product("matmul_heads", stage, x, packed, padded)
    fields |= {"x": At(source), "x_stride": count * head_bytes, "x_head": head_bytes}
    shape = f"(T, {count}, {width}) x ({count}, {features}, {width})ᵀ"
    cost = count * each, count * features * width
    builder.emit(stage, kernel, fields, (source,), (out,), shape, cost=cost)
    return out


def attention(builder: Builder, layer: int, kind: Attention, x: str, out: str) -> str:
    """out = attention(x), without the residual addition."""
    stage = builder.named(f"blocks.{layer}.attention")
    if kind.chunked and not (kind.causal and kind.window):
        raise UnsupportedModel(f"{stage}: attention in chunks must be causal and have a window")
    if kind.disentangled and (kind.heads != kind.kv_heads or not builder.spec.relative):
        raise UnsupportedModel(f"{stage}: relative positions need their vectors, and as many key/value heads as heads")
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
    widths = {"q": kind.heads * kind.head_dim, "k": kind.kv_heads * kind.head_dim, "v": kind.kv_heads * kind.value_dim}
    names = "q" if kind.shared is not None else "qk" if kind.keys_as_values else "qkv"
    projected = {}
    for name in names:
        letters, parts = {"q": ("H K", kind.heads), "k": ("G K", kind.kv_heads), "v": ("G V", kind.kv_heads)}[name]
        bias, bits = kind.bias and (name != "k" or kind.key_bias), builder.sensitive_bits if name == "v" else 0
        projected[name] = builder.linear(
            f"{stage}.{name}", x, widths[name], name, bias=bias, letters=letters, parts=parts, activation_bits=bits
        )
        builder.point(projected[name], NOUNS[name] if name == "v" else f"{NOUNS[name]}, before rotary positions")
    if kind.keys_as_values and kind.shared is None:
        heads, width = kind.kv_heads, shape.value_dim
        v = builder.buffer("v", heads * width)
        projected["v"] = place(builder, f"{stage}.v_copy", projected["k"], heads, kind.value_dim, v, width)
        builder.view(v, "G V", heads, kind.value_dim, width)
    return projected


def _cached_shape(builder: Builder, stage: str, kind: Attention) -> LayerShape:
    """The shape of the layer in the cache, or of the layer whose keys and values the block shares."""
    if kind.shared is not None:
        if kind.shared not in builder.cached_attention:
            raise UnsupportedModel(f"{stage}: block {kind.shared} has no keys and values to share")
        shared = builder.layers[builder.cached_attention[kind.shared]]
        assert isinstance(shared, LayerShape)
        return shared
    return layer_shape(builder, stage, kind)
