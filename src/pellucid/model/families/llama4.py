"""Llama 4 (Meta 2025): chunked attention, layers without positions, experts with weighted inputs.

MobileLLM-Pro is a Llama 4 without experts.
"""

from __future__ import annotations

from msgspec.structs import replace

from pellucid.errors import brief
from pellucid.model.config import MAX_LAYERS, Config
from pellucid.model.metadata import except_every, slide
from pellucid.model.positions import QueryScale
from pellucid.model.spec import Attention, FeedForward, Mixture, ModelSpec, Norm
from pellucid.model.standard_decoder import StandardDecoder
from pellucid.model.standard_mixture import StandardMixture
from pellucid.model.tensor_names import TRANSFORMERS

INTERVAL, CHUNK = 4, 8192  # every fourth layer has no positions; the others attend to their chunk
WINDOW = "attention.sliding_window"
FLOOR, GROWTH = 8192, 0.1  # defaults of the query scale in layers without positions
WITHOUT_NORMS = 128  # experts of the model without norms of heads; GGUF has no key for these norms
EXPERTS = "feed_forward.experts"


def _mixtures(spec: ModelSpec, sparse: list[bool], dense: FeedForward) -> ModelSpec:
    """Set the layers with experts. The shared expert of a layer has the width of the other experts."""

    def change(kind: FeedForward | Mixture | None, has_experts: bool) -> FeedForward | Mixture | None:
        if isinstance(kind, Mixture) and has_experts:
            return replace(kind, shared=kind.expert, input_weights=True)
        return dense

    blocks = zip(spec.blocks, sparse)
    return replace(
        spec, blocks=tuple(replace(block, feedforward=change(block.feedforward, has)) for block, has in blocks)
    )


def _positions(spec: ModelSpec, rotated: list[bool], normed: bool, scale: QueryScale | None) -> ModelSpec:
    """Set the norms of heads in layers with positions, and the query scale in layers without positions."""
    norm = replace(spec.blocks[0].norm, weight=False)

    def change(layer: int, attention: Attention) -> Attention:
        if rotated[layer]:
            return replace(attention, qk_norm=norm if normed else None)
        return replace(attention, rotary=None, query_scale=scale)

    return spec.change_attention(change)


def _every(config: Config, layers: int) -> list[bool]:
    """True for each layer with experts: every ``interleave_moe_layer_step``-th layer; 0: no layer."""
    step = config.optional_count("interleave_moe_layer_step") if config.has("interleave_moe_layer_step") else 1
    return [step > 0 and (layer + 1) % step == 0 for layer in range(layers)]


def _from_config(config: Config, spec: ModelSpec) -> ModelSpec:
    layers = len(spec.blocks)
    interval = config.count("no_rope_layer_interval", INTERVAL)
    rotated = except_every(interval, layers)
    if config.value("no_rope_layers") not in (None, []):  # the published list is empty
        rotated = config.flags("no_rope_layers", layers) or rotated
    chunk = config.optional_count("attention_chunk_size") if config.is_present("attention_chunk_size") else CHUNK
    kinds = {"chunked_attention": True, "full_attention": False}
    chunked = config.choices("layer_types", kinds, layers) or [chunk > 0 and one for one in rotated]
    if any(chunked) and not chunk:
        raise config.error("attention_chunk_size", "missing; chunked_attention in layer_types needs it")
    scale = QueryScale(config.number("attn_scale", GROWTH), config.count("floor_scale", FLOOR), offset=1)
    tuned = config.value("attn_temperature_tuning")  # older files have a number
    if not isinstance(tuned, (bool, int, type(None))):
        raise config.error("attn_temperature_tuning", f"is {brief(tuned)}; it must be true, false or a whole number")
    spec = slide(spec, chunked, chunk, chunked=True)
    spec = _positions(spec, rotated, config.flag("use_qk_norm", True), None if tuned in (False, 0) else scale)
    sparse = _every(config, layers)
    if config.has("moe_layers"):
        with_experts = config.number_set("moe_layers", MAX_LAYERS)
        sparse = [layer in with_experts for layer in range(layers)]
    return _mixtures(spec, sparse, FeedForward(config.count("intermediate_size_mlp"), "silu", gated=True))


def _from_gguf(config: Config, spec: ModelSpec) -> ModelSpec:
    layers, experts = len(spec.blocks), config.optional_count("expert_count")
    chunk = config.optional_count(WINDOW) if config.has(WINDOW) else CHUNK
    if chunk not in (0, CHUNK):  # llama.cpp replaces any other number by CHUNK
        raise config.error(WINDOW, f"is {chunk:,}; it must be 0 or {CHUNK:,}")
    rotated = except_every(INTERVAL, layers) if chunk else [True] * layers
    scale = QueryScale(GROWTH, FLOOR, offset=1) if chunk else None
    if chunk:
        spec = slide(spec, rotated, CHUNK, chunked=True)
    spec = _positions(spec, rotated, experts != WITHOUT_NORMS, scale)
    sparse = _every(config, layers)
    return _mixtures(spec, sparse, FeedForward(config.count("feed_forward_length"), "silu", gated=True))


_DECODER = StandardDecoder(
    "llama4",
    model_type="llama4_text",
    gguf_pairing="interleaved",
    pairing="interleaved",
    base=500_000.0,
    norm=Norm("rms", 1e-5),
    mixture=StandardMixture(score="sigmoid", optional=True, keys={"width": "intermediate_size", "normalize": ""}),
    keys={"feedforward_bias": "", "feed_forward": "intermediate_size_mlp"},
    names=TRANSFORMERS.with_experts(f"{EXPERTS}.gate_up_proj", f"{EXPERTS}.down_proj", transposed=True)
    | {
        "feedforward.gate": "feed_forward.gate_proj",
        "feedforward.up": "feed_forward.up_proj",
        "feedforward.down": "feed_forward.down_proj",
        "feedforward.router": "feed_forward.router",
        "feedforward.shared.gate": "feed_forward.shared_expert.gate_proj",
        "feedforward.shared.up": "feed_forward.shared_expert.up_proj",
        "feedforward.shared.down": "feed_forward.shared_expert.down_proj",
    },
    gguf_change=_from_gguf,
    config_change=_from_config,
)
LLAMA4 = replace(_DECODER.family(), gguf_usual={WINDOW: CHUNK})
