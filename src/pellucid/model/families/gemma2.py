"""Gemma 2 (Gemma Team 2024): sandwich norms, soft-caps, and a sliding window in every second layer."""

from __future__ import annotations

from msgspec.structs import replace

from pellucid.model.config import Config
from pellucid.model.families.gemma import ACTIVATIONS, capped, check_activation, gguf_scale
from pellucid.model.sliding_windows import SlidingWindows
from pellucid.model.spec import ModelSpec
from pellucid.model.standard_decoder import StandardDecoder
from pellucid.model.tensor_names import TRANSFORMERS_SANDWICH


def _from_gguf(config: Config, spec: ModelSpec) -> ModelSpec:
    return capped(config, spec, gguf_scale(spec, layers_of_27b=46))


def _from_config(config: Config, spec: ModelSpec) -> ModelSpec:
    check_activation(config)
    scale = config.number("query_pre_attn_scalar", 256) ** -0.5
    return capped(config, spec, scale, scores_cap=50.0, logits_cap=30.0)


DECODER = StandardDecoder(
    "gemma2",
    tied=True,
    activation="gelu_tanh",
    activations=ACTIVATIONS,
    placement="sandwich",
    windows=SlidingWindows(period=2),
    names=replace(TRANSFORMERS_SANDWICH, norm_plus=1.0),
    gguf_change=_from_gguf,
    config_change=_from_config,
)
GEMMA2 = DECODER.family()
