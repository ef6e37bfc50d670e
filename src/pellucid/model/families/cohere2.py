"""Command R7B and A (Cohere 2025): parallel attention and feed-forward with one layer norm.

Layers with a sliding window have rotary positions. Layers with full attention have no positions.
"""

from __future__ import annotations

from msgspec.structs import replace

from pellucid.model.config import Config
from pellucid.model.metadata import SlidingWindows
from pellucid.model.spec import ModelSpec, Norm
from pellucid.model.standard_decoder import StandardDecoder


def _changed(spec: ModelSpec, logits: float) -> ModelSpec:
    assert spec.head is not None
    without = spec.change_attention(
        lambda _, attention: attention if attention.window else replace(attention, rotary=None)
    )
    return replace(without, head=replace(spec.head, scale=logits))


def _from_gguf(config: Config, spec: ModelSpec) -> ModelSpec:
    return _changed(spec, config.number("logit_scale", 1.0))


def _from_config(config: Config, spec: ModelSpec) -> ModelSpec:
    config.refuse("position_embedding_type", "rope_gptj", "rope", "rotary")
    return _changed(spec, config.number("logit_scale", 0.0625))


COHERE2 = StandardDecoder(
    "cohere2",
    gguf_pairing="interleaved",
    pairing="interleaved",
    windows=SlidingWindows(period=4, period_key="sliding_window_pattern"),
    norm=Norm("layer", 1e-5, bias=False),
    placement="shared",
    tied=True,
    keys={"norm_eps": "layer_norm_eps"},
    gguf_change=_from_gguf,
    config_change=_from_config,
).family()
