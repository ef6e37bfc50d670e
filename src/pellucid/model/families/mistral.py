"""Mistral (Jiang et al. 2023): like Llama, with a sliding window in the first version.

The architecture in GGUF files is "llama". Ministral 3 (Mistral AI 2025) multiplies queries by a factor that grows with
the position.
"""

from __future__ import annotations

from msgspec.structs import replace

from pellucid.model.config import Config
from pellucid.model.positions import QueryScale
from pellucid.model.rotary_metadata import yarn_magnitude
from pellucid.model.spec import ModelSpec, Norm
from pellucid.model.standard_decoder import StandardDecoder

WINDOW = 4096  # default of config.json
POSITIONS = {
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 16.0,
    "original_max_position_embeddings": 16_384,
    "attention_factor": 1.0,
    "llama_4_scaling_beta": 0.1,
}


def _window(config: Config, spec: ModelSpec) -> ModelSpec:
    """Set the default window if the file does not have the key. The value null means no window."""
    return spec if config.is_present("sliding_window") else spec.with_attention(window=WINDOW)


def _scaled_config(config: Config, spec: ModelSpec) -> ModelSpec:
    table = config.table("rope_parameters")
    table.value("max_position_embeddings")  # repeats the context
    beta = table.optional_number("llama_4_scaling_beta")
    if not beta:
        return spec
    scale = QueryScale(beta, table.count("original_max_position_embeddings"))
    return spec.with_attention(query_scale=scale)


def _scaled_gguf(config: Config, spec: ModelSpec) -> ModelSpec:
    beta = config.optional_number("attention.temperature_scale")
    length = config.count("rope.scaling.original_context_length", config.count("context_length"))
    all_dims, rotary = config.optional_number("rope.scaling.yarn_log_multiplier"), spec.attention.rotary
    if all_dims and rotary and rotary.scaling and rotary.scaling.kind == "yarn":
        factor = rotary.scaling.factor
        magnitude = yarn_magnitude(factor) / yarn_magnitude(factor, all_dims)
        spec = spec.with_attention(
            rotary=replace(rotary, scaling=replace(rotary.scaling, magnitude=magnitude))
        )
    return spec.with_attention(query_scale=QueryScale(beta, length)) if beta else spec


MISTRAL = StandardDecoder(
    "mistral", architecture=None, keys={"window": "sliding_window"}, config_change=_window
).family()
MINISTRAL3 = StandardDecoder(
    "ministral3",
    architecture="mistral3",
    norm=Norm("rms", 1e-5),
    default_rope_parameters=POSITIONS,
    gguf_pairing="interleaved",
    keys={"window": "sliding_window"},
    gguf_change=_scaled_gguf,
    config_change=_scaled_config,
).family()
