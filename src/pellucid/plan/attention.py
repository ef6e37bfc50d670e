"""Attention over the cached keys and values. (T, D) → (T, D)."""

from __future__ import annotations

from pellucid.errors import UnsupportedModel
from pellucid.kernels.attention import kv_layout
from pellucid.kernels.core.definitions import KernelKey
from pellucid.kernels.matmul.packed_layout import BLOCK, ROWS, round_up
from pellucid.kernels.matmul.quantize import MAX_ACTIVATION_BITS, block_bytes
from pellucid.model.spec import Attention, Latent
from pellucid.plan.builder import COUNT, NO_BIAS, Builder, heads
from pellucid.plan.feedforward import apply
from pellucid.plan.norm import norm
from pellucid.plan.plan import (
    LETTER,
    At,
    Cache,
    CacheGroup,
    Operation,
    PageBytes,
    ScoreBias,
    Value,
    Vector,
    Weights,
)
from pellucid.plan.position import alibi_table, rotate, scale_queries
from pellucid.runtime.cache_layout import LayerShape


def attention(builder: Builder, layer: int, kind: Attention, x: str, out: str) -> str:
    """out = attention(x), without the residual addition."""
    stage = f"blocks.{layer}.attention"
    if kind.chunked and not (kind.causal and kind.window):
        raise UnsupportedModel(f"{stage}: chunks are of causal attention, and have a number of tokens")
    if kind.latent:
        return _latent(builder, stage, kind, kind.latent, x, out)
    shape = _cached_shape(builder, stage, kind)
    made = _projected(builder, stage, kind, shape, x)
    if kind.clip:
        for name in made:
            builder.clip(f"{stage}.{name}_clip", made[name], kind.clip)
    for name in made:
        if name != "v" and kind.qk_norm and kind.qk_norm_whole:
            at = f"{stage}.{name}_norm"
            norm(builder, at, at, kind.qk_norm, made[name], made[name])
    dims = {
        "q": (kind.heads, kind.head_dim, shape.head_dim),
        "k": (kind.kv_heads, kind.head_dim, shape.head_dim),
        "v": (kind.kv_heads, kind.value_dim, shape.value_dim),
    }
    for name in made:
        if not (name == "v" and kind.keys_as_values):  # such values already have the heads of the cache
            made[name] = regroup(builder, f"{stage}.{name}_heads", made[name], *dims[name])
    norms = {"v": kind.v_norm, **dict.fromkeys("qk", None if kind.qk_norm_whole else kind.qk_norm)}
    for name, of in made.items():
        if (how := norms[name]) is not None:
            (count, width, _), at = dims[name], f"{stage}.{name}_norm"
            norm(builder, at, at, how, of, of, parts=count, count=width)
    for name, of in made.items():
        if kind.rotary and name != "v":
            rotate(builder, f"{stage}.{name}_rotary", kind.rotary, of, dims[name][0], shape.head_dim)
    q = made["q"]
    if kind.shared is None:
        cached = _write_cache(builder, stage, kind, shape, made["k"], made["v"])
        builder.cached_attention[layer] = cached
    else:
        cached = builder.cached_attention[kind.shared]
    if kind.query_scale:
        scale_queries(builder, f"{stage}.q_scale", kind.query_scale, q, kind.heads)
    attended = _attend(builder, stage, cached, shape, kind, q)
    attended = regroup(builder, f"{stage}.heads", attended, kind.heads, shape.value_dim, kind.value_dim)
    if kind.gate:
        width = kind.heads * kind.value_dim
        gate = builder.linear(f"{stage}.gate", x, f"{stage}.gate", width, "gate", bias=kind.bias)
        apply(builder, f"{stage}.gated", "sigmoid", gate, attended, f"(T, {width})")
        attended = gate
    return _output(builder, stage, kind, attended, out)


def _projected(builder: Builder, stage: str, kind: Attention, shape: LayerShape, x: str) -> dict[str, str]:
    """The buffers of queries, keys and values by name. A block that shares keys and values has only queries."""
    widths = {
        "q": kind.heads * kind.head_dim,
        "k": kind.kv_heads * kind.head_dim,
        "v": kind.kv_heads * kind.value_dim,
    }
    names = "q" if kind.shared is not None else "qk" if kind.keys_as_values else "qkv"
    made = {
        name: builder.linear(
            f"{stage}.{name}",
            x,
            f"{stage}.{name}",
            widths[name],
            name,
            bias=kind.bias,
            parts=kind.heads if name == "q" else kind.kv_heads,
            activation_bits=builder.fine_bits if name == "v" else 0,
        )
        for name in names
    }
    if kind.keys_as_values and kind.shared is None:
        v, at = builder.buffer("v", kind.kv_heads * shape.value_dim), f"{stage}.v_copy"
        made["v"] = place(builder, at, made["k"], kind.kv_heads, kind.value_dim, v, shape.value_dim)
    return made


def _latent(builder: Builder, stage: str, kind: Attention, latent: Latent, x: str, out: str) -> str:
    """Latent attention in its absorbed form (DeepSeek-AI 2024, DeepSeek-V2, section 2.1).

    All heads share the key of a token: its latent vector, followed by a rotary part. The value is the latent vector.
    Each head multiplies its query by its key up-projection matrix, and its attention output by its value up-projection
    matrix. So the cache holds a single head, and each key is read once for all heads.
    """
    heads_, rank, rotated = kind.heads, latent.rank, kind.head_dim - latent.plain_dim
    if kind.rotary is None or kind.qk_norm or kind.gate or kind.query_scale or kind.clip:
        raise UnsupportedModel(
            f"{stage}: latent attention has rotary positions, and no norms of heads, output gate, query scale or clip"
        )
    kv_dtype = builder.kv_dtype or _kv_dtype(builder, stage, kind)
    unit = kv_layout.unit(kv_dtype)
    key, value = round_up(rank + rotated, unit), round_up(rank, unit)
    window = kind.window if kind.causal else 0
    source = x
    if latent.query_rank:
        source = builder.linear(
            f"{stage}.q_down", x, f"{stage}.q_down", latent.query_rank, "q_down", bias=kind.bias
        )
        norm(builder, f"{stage}.q_down_norm", f"{stage}.q_down_norm", latent.norm, source, source)
    plain = builder.linear(f"{stage}.q", source, f"{stage}.q", heads_ * latent.plain_dim, "q", parts=heads_)
    turned = builder.linear(
        f"{stage}.q_rotary", source, f"{stage}.q_rotary", heads_ * rotated, "q_rotary", parts=heads_
    )
    memory = builder.linear(f"{stage}.latent", x, f"{stage}.latent", rank, "latent", bias=kind.bias)
    norm(builder, f"{stage}.latent_norm", f"{stage}.latent_norm", latent.norm, memory, memory)
    k_turned = builder.linear(
        f"{stage}.k_rotary", x, f"{stage}.k_rotary", rotated, "k_rotary", bias=kind.bias
    )
    turned = regroup(builder, f"{stage}.q_rotary_heads", turned, heads_, rotated, round_up(rotated, ROWS))
    for part, of, count in (("q", turned, heads_), ("k", k_turned, 1)):
        rotate(builder, f"{stage}.{part}_rotated", kind.rotary, of, count, round_up(rotated, ROWS))
    q = _by_head(builder, f"{stage}.k_up", plain, heads_, latent.plain_dim, rank, "q_latent", key)
    place(builder, f"{stage}.q_joined", turned, heads_, round_up(rotated, ROWS), q, key, offset=rank)
    k = place(builder, f"{stage}.k_latent", memory, 1, rank, builder.buffer("k", key), key)
    place(builder, f"{stage}.k_joined", k_turned, 1, rotated, k, key, offset=rank)
    v = regroup(builder, f"{stage}.v_latent", memory, 1, rank, value)
    shape = LayerShape(1, key, value, kv_dtype, window, kind.chunked and window > 0)
    cached = _write_cache(builder, stage, kind, shape, k, v)
    attended = _attend(builder, stage, cached, shape, kind, q, rank)
    attended = regroup(builder, f"{stage}.heads", attended, heads_, value, rank)
    gathered = _by_head(builder, f"{stage}.v_up", attended, heads_, rank, kind.value_dim, "gathered")
    width = round_up(kind.value_dim, ROWS)
    gathered = regroup(builder, f"{stage}.v_heads", gathered, heads_, width, kind.value_dim)
    return _output(builder, stage, kind, gathered, out)


def _output(builder: Builder, stage: str, kind: Attention, attended: str, out: str) -> str:
    width = builder.spec.embedding.width
    return builder.linear(f"{stage}.output", attended, f"{stage}.output", width, out, bias=kind.output_bias)


def _by_head(
    builder: Builder, stage: str, x: str, count: int, width: int, features: int, out: str, apart: int = 0
) -> str:
    """Multiply each head of x (T, count, width) by its matrix in the slot ``stage``.weight (count, features, width).

    The heads of the result have a stride of ``apart`` values, by default ``features`` rounded up to whole vectors.
    """
    packed, slot = builder.layouts[f"{stage}.weight"], f"{stage}.weight"
    padded = round_up(width, ROWS if packed.is_float else BLOCK)
    x = regroup(builder, f"{stage}.input", x, count, width, padded)
    apart = apart or round_up(features, ROWS)
    builder.buffer(out, count * apart)
    builder.divide(out, count, features, apart)
    fields: dict[str, Value] = {
        "weights": Weights(slot, count),
        "heads": count,
        "head_bytes": packed.matrix_bytes(features, padded),
        "groups": round_up(features, ROWS) // ROWS,
        "group_bytes": packed.group_bytes(padded),
        "columns": padded,
        "out": At(out),
        "out_stride": 4 * builder.width_of(out),
        "out_head": 4 * apart,
        "zeros": NO_BIAS,
        "rows": COUNT["tokens"],
    }
    if packed.is_float:
        kernel, source = KernelKey("matmul_heads_float", packed=packed), x
        fields |= {"x": At(x), "x_stride": 4 * builder.width_of(x), "x_head": 4 * padded}
    else:
        if padded % packed.unit:
            raise UnsupportedModel(f"{stage}: width {padded} is not a multiple of the format's {packed.unit}")
        bits = builder.activation_bits
        kernel = KernelKey("matmul_heads_int8", packed=packed, activation_bits=bits)
        source = builder.quantized(x, stage, bits)
        each = block_bytes(bits)
        fields |= {
            "x": At(source),
            "x_stride": builder.width_of(x) // BLOCK * each,
            "x_head": padded // BLOCK * each,
        }
    builder.emit(
        Operation(
            stage,
            kernel,
            fields,
            (source,),
            (out,),
            f"(T, {count}, {width}) x ({count}, {features}, {width})ᵀ",
            weight_bytes=count * packed.matrix_bytes(features, padded),
            multiply_adds=count * features * width,
        )
    )
    return out


def _cached_shape(builder: Builder, stage: str, kind: Attention) -> LayerShape:
    """The shape of the layer in the cache. Heads are padded to the unit of the KV dtype."""
    if kind.shared is not None:
        if kind.shared not in builder.cached_attention:
            raise UnsupportedModel(f"{stage}: block {kind.shared} has no keys and values to share")
        shared = builder.layers[builder.cached_attention[kind.shared]]
        assert isinstance(shared, LayerShape)
        return shared
    if kind.heads % kind.kv_heads:
        raise UnsupportedModel(
            f"{stage}: {kind.heads} heads with {kind.kv_heads} key/value heads; these must divide them"
        )
    kv_dtype = builder.kv_dtype or _kv_dtype(builder, stage, kind)
    unit = kv_layout.unit(kv_dtype)
    window = kind.window if kind.causal and not kind.cross else 0
    head_dim, value_dim = round_up(kind.head_dim, unit), round_up(kind.value_dim, unit)
    return LayerShape(kind.kv_heads, head_dim, value_dim, kv_dtype, window, kind.chunked and window > 0)


def regroup(builder: Builder, stage: str, x: str, count: int, width: int, wanted: int) -> str:
    """Convert (T, count, width) to (T, count, wanted): pad each head with zeros, or remove the padding."""
    if width == wanted:
        return x
    return place(builder, stage, x, count, width, builder.buffer(f"{x}.heads", count * wanted), wanted)


def place(
    builder: Builder,
    stage: str,
    x: str,
    count: int,
    width: int,
    out: str,
    wanted: int,
    *,
    offset: int = 0,
    start: int = 0,
) -> str:
    """Copy (T, count, width) into out (T, count, wanted), at ``offset`` of each head. Zeros follow.

    The first head begins at column ``start`` of x.
    """
    rows = builder.buffers[x].rows
    fields: dict[str, Value] = {
        "x": At(x, 4 * start),
        "x_stride": 4 * builder.width_of(x),
        "width": width,
        "out": At(out),
        "out_stride": 4 * builder.width_of(out),
        "out_width": wanted,
        "offset": offset,
        "heads": count,
        "rows": COUNT[rows],
    }
    builder.divide(out, count, min(offset + width, wanted), wanted)
    shape = f"({LETTER[rows]}, {count}, {width}) → ({LETTER[rows]}, {count}, {wanted})"
    kernel, partitions = KernelKey("heads"), {out: heads(count)}
    builder.emit(Operation(stage, kernel, fields, (x,), (out,), shape, rows=rows, partitions=partitions))
    return out


def _write_cache(builder: Builder, stage: str, kind: Attention, shape: LayerShape, k: str, v: str) -> int:
    """Write keys and values to the cache. Returns the index of the layer in the cache."""
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
    """Default dtype of keys and values.

    float32 for the finest activations: it rounds nothing. float16 for floating-point weights, and for keys with biases:
    the biases can be large, and then rounding a key to 8 bits changes the scores (Qwen 2.5). bfloat16 otherwise: 8-bit
    activations have a larger error than bfloat16 products.
    """
    if builder.activation_bits == MAX_ACTIVATION_BITS:
        return "f32"
    return "f16" if kind.bias or builder.layouts[f"{stage}.q.weight"].is_float else "bf16"


def _attend(
    builder: Builder, stage: str, layer: int, layer_shape: LayerShape, kind: Attention, q: str, width: int = 0
) -> str:
    """softmax(q Kᵀ) V. The result of a head has ``width`` values, by default the width of a value head."""
    attended = builder.buffer("attended", kind.heads * layer_shape.value_dim)
    builder.divide(attended, kind.heads, width or kind.value_dim, layer_shape.value_dim)
    name = alibi_table(builder, kind) if kind.alibi else None
    table = builder.tables[name] if name else None
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
        "chunked": int(kind.chunked),
        "bias": ScoreBias(name) if name else 0,
        "bias_stride": 4 * table.columns if table else 0,
        "bias_step": 4 * table.moves if table else 0,
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
