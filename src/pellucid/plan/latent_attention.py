"""Latent attention: the cache has one vector per token, which all heads share. (T, D) → (T, D)."""

from __future__ import annotations

from pellucid.errors import UnsupportedModel
from pellucid.kernels.attention import kv_layout
from pellucid.kernels.matmul.packed_layout import BLOCK, ROWS, round_up
from pellucid.model.spec import Attention, Latent
from pellucid.plan.builder import NO_BIAS, ROW_COUNT, Builder
from pellucid.plan.cached_attention import HEADS, NOUNS, attend, kv_dtype_of, output_projection, write_cache
from pellucid.plan.heads import place, regroup
from pellucid.plan.norm import norm
from pellucid.plan.plan import At, Operation, Value, Weights
from pellucid.plan.position import rotate
from pellucid.runtime.cache_layout import LayerShape

ROTARY_INPUT = "the part of the {} that is rotated, before the rotation"


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
    kv_dtype = kv_dtype_of(builder, stage, kind)
    unit = kv_layout.unit(kv_dtype)
    key, value = round_up(rank + rotated, unit), round_up(rank, unit)
    window = kind.window if kind.causal else 0
    source = x
    if latent.query_rank:
        source = builder.linear(f"{stage}.q_down", x, latent.query_rank, "q_down", bias=kind.bias)
        builder.point(source, "the latent vector of the queries of all heads")
        norm(builder, f"{stage}.q_down_norm", latent.norm, source)
        builder.point(source, "the latent vector of the queries of all heads, normalised")
    q_plain = builder.linear(f"{stage}.q", source, heads * latent.plain_dim, "q", letters="H K", parts=heads)
    builder.point(q_plain, "the part of the queries that has no position")
    q_rotary = builder.linear(
        f"{stage}.q_rotary", source, heads * rotated, "q_rotary", letters="H K", parts=heads
    )
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
    shape = LayerShape(1, key, value, kv_dtype, window, kind.chunked and window > 0)
    cached = builder.cached(shape)
    write_cache(builder, stage, kind, shape, cached, k, v)
    attended = attend(builder, stage, cached, shape, kind, q, rank)
    builder.point(
        attended, "the output of each head, in the space of the latent vectors", name=f"{stage}.latent_heads"
    )
    attended = regroup(builder, f"{stage}.heads", attended, heads, value, rank)
    gathered = _by_head(builder, f"{stage}.v_up", attended, heads, rank, kind.value_dim, "gathered", "H V")
    builder.point(gathered, HEADS, name=f"{stage}.heads")
    width = round_up(kind.value_dim, ROWS)
    gathered = regroup(builder, f"{stage}.v_heads", gathered, heads, width, kind.value_dim)
    return output_projection(builder, stage, kind, gathered, out)


def _by_head(
    builder: Builder,
    stage: str,
    x: str,
    count: int,
    width: int,
    features: int,
    out: str,
    letters: str,
    stride: int = 0,
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
    fields: dict[str, Value] = {
        "weights": Weights(slot, count),
        "heads": count,
        "head_bytes": packed.matrix_bytes(features, padded),
        "groups": round_up(features, ROWS) // ROWS,
        "group_bytes": packed.group_bytes(padded),
        "columns": padded,
        "out": At(out),
        "out_stride": 4 * builder.width_of(out),
        "out_head": 4 * stride,
        "zeros": NO_BIAS,
        "rows": ROW_COUNT["tokens"],
    }
    kernel, source, head_bytes = builder.product("matmul_heads", stage, x, packed, padded)
    fields |= {"x": At(source), "x_stride": count * head_bytes, "x_head": head_bytes}
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
