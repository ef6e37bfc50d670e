"""Command R7B and A (Cohere 2025): parallel attention and feed-forward with one layer norm.

Layers with a sliding window have rotary positions. Layers with full attention have no positions.
"""

from __future__ import annotations

from msgspec.structs import replace

from pellucid.model.common_metadata import except_every, slide, sliding_layers
from pellucid.model.config import Config
from pellucid.model.spec import ModelSpec, Norm
from pellucid.model.standard_decoder import StandardDecoder

PATTERN = 4  # every fourth layer has full attention


def _mixed(spec: ModelSpec, sliding: list[bool], window: int, logits: float) -> ModelSpec:
    assert spec.head is not None
    rotary = spec.attention.rotary
    return replace(
        slide(spec.with_attention(rotary=None), sliding, window, rotary=rotary),
        head=replace(spec.head, scale=logits),
    )


def _from_gguf(config: Config, spec: ModelSpec) -> ModelSpec:
    sliding = except_every(config.count("attention.sliding_window_pattern", PATTERN), len(spec.blocks))
    window = config.count("attention.sliding_window")
    return _mixed(spec, sliding, window, config.number("logit_scale", 1.0))


def _from_config(config: Config, spec: ModelSpec) -> ModelSpec:
    pattern = except_every(config.count("sliding_window_pattern", PATTERN), len(spec.blocks))
    window = config.count("sliding_window")
    config.refuse("position_embedding_type", "rope_gptj", "rope", "rotary")
    return _mixed(spec, sliding_layers(config, pattern), window, config.number("logit_scale", 0.0625))


COHERE2 = StandardDecoder(
    "cohere2",
    gguf_pairing="interleaved",
    pairing="interleaved",
    norm=Norm("layer", 1e-5, bias=False),
    placement="shared",
    tied=True,
    keys={"norm_eps": "layer_norm_eps"},
    gguf_change=_from_gguf,
    config_change=_from_config,
).family()
