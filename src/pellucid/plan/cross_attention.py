"""Cross attention of an encoder-decoder: (T, D) → (T, D).

The encoder projects its output to the keys and values of every decoder block, and writes them to the pages of the
source. The decoder's queries attend to them. So a source is encoded once, for all steps and all answers.
"""

from __future__ import annotations

from pellucid.errors import UnsupportedModel
from pellucid.model.spec import Attention, ModelSpec
from pellucid.plan.builder import Builder
from pellucid.plan.cached_attention import HEADS, NOUNS, attend, layer_shape, output_projection, write_cache
from pellucid.plan.heads import regroup
from pellucid.plan.norm import norm


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
            for name, width, padded in (
                ("k", kind.head_dim, shape.head_dim),
                ("v", kind.value_dim, shape.value_dim),
            ):
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
