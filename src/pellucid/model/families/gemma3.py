"""Gemma 3, text (Gemma Team 2025): sandwich norms, query and key norms, five sliding layers per full layer.

Sliding layers have the rotary base 10,000, full layers have the base in the file. The embedding is scaled by sqrt(D).
Norms multiply by 1 + w: GGUF files store 1 + w, safetensors store w.
"""

from __future__ import annotations

from msgspec.structs import replace

from pellucid.model.config import Config
from pellucid.model.families.gemma import TANH, capped, check_activation, gguf_scale
from pellucid.model.sliding_windows import SlidingWindows
from pellucid.model.spec import Attention, ModelSpec
from pellucid.model.standard_decoder import StandardDecoder
from pellucid.model.tensor_names import TRANSFORMERS_SANDWICH


def _scaled_context(_: int, attention: Attention) -> Attention:
    """Remove the trained context of linear scaling, because the context in GGUF is already the scaled context."""
    rotary = attention.rotary
    if rotary is None or rotary.scaling is None or rotary.scaling.kind != "linear":
        return attention
    return replace(attention, rotary=replace(rotary, scaling=replace(rotary.scaling, trained_context=0)))


def _from_gguf(config: Config, spec: ModelSpec) -> ModelSpec:
    return capped(config, spec.change_attention(_scaled_context), gguf_scale(spec, layers_of_27b=62))


def _from_config(config: Config, spec: ModelSpec) -> ModelSpec:
    check_activation(config)
    return capped(config, spec, config.number("query_pre_attn_scalar", 256) ** -0.5)


GEMMA3 = StandardDecoder(
    "gemma3",
    model_type="gemma3_text",
    gguf_also=("gemma-embedding",),
    base=1_000_000.0,
    head_norm=True,
    windows=SlidingWindows(
        period=6,
        period_key="sliding_window_pattern",
        own_positions=True,
        base=10_000.0,
        base_key="rope_local_base_freq",
    ),
    activation="gelu_tanh",
    activations=TANH,
    placement="sandwich",
    tied=True,
    keys={"feedforward_bias": ""},
    # Defaults of transformers, which config.json of the 4B model omits.
    defaults={"heads": 8, "kv_heads": 4, "head_dim": 256, "context": 131_072, "vocabulary": 262_208},
    gguf_aliases={
        "rope.freq_base_swa": "rope.local.freq_base",
        "rope.freq_base": "rope.global.freq_base",
    },
    names=replace(TRANSFORMERS_SANDWICH, norm_plus=1.0),
    gguf_change=_from_gguf,
    config_change=_from_config,
).family()
