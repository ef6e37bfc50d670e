"""Llama, and the decoders with its blocks: Mistral, Mixtral, SmolLM3, Seed-OSS."""

from __future__ import annotations

from msgspec.structs import replace

from pellucid.model.config import Config
from pellucid.model.metadata import except_every, switched_windows, yarn_magnitude
from pellucid.model.positions import QueryScale
from pellucid.model.spec import ModelSpec, Norm
from pellucid.model.standard_decoder import StandardDecoder
from pellucid.model.standard_mixture import StandardMixture
from pellucid.model.tensor_names import GGUF, TRANSFORMERS

# Llama (Touvron et al. 2023; Llama Team 2024): pre-norm, rotary positions, grouped-query attention, gated SiLU.
#
# In GGUF files the rows of q and k are permuted, so that the two values of a rotary pair are adjacent. In models with
# config.json, pairs consist of values from both halves of a head. GGUF files of Mixtral are "llama" with experts.

LLAMA = StandardDecoder(
    "llama",
    also=("llama_bidirec",),
    gguf_also=("llama-embed",),
    gguf_pairing="interleaved",
    mixture=StandardMixture(normalize=True, optional=True, in_config=False),
    # The rotary frequencies in older safetensors files, which follow from the base.
    unused=(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",),
).family()


# Mistral (Jiang et al. 2023): like Llama, with a sliding window in the first version.
#
# The architecture in GGUF files is "llama". Ministral 3 (Mistral AI 2025) multiplies queries by a factor that grows
# with the position.

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
        spec = spec.with_attention(rotary=replace(rotary, scaling=replace(rotary.scaling, magnitude=magnitude)))
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


# Mixtral (Jiang et al. 2024): Mistral with a mixture of experts. The architecture in GGUF files is "llama".

MIXTRAL = StandardDecoder(
    "mixtral",
    architecture=None,
    base=1_000_000.0,
    norm=Norm("rms", 1e-5),
    mixture=StandardMixture(normalize=True, keys={"width": "", "normalize": ""}),
    keys={"window": "sliding_window"},
    names=TRANSFORMERS
    | {
        "feedforward.router": "block_sparse_moe.gate",
        "feedforward.experts.gate": "block_sparse_moe.experts.{}.w1",
        "feedforward.experts.up": "block_sparse_moe.experts.{}.w3",
        "feedforward.experts.down": "block_sparse_moe.experts.{}.w2",
    },
).family()


# SmolLM3 (Hugging Face 2025): like Llama, without positions in every fourth layer.

INTERVAL = 4


def _without_positions(spec: ModelSpec, rotated: list[bool]) -> ModelSpec:
    return spec.change_attention(
        lambda layer, attention: attention if rotated[layer] else replace(attention, rotary=None)
    )


def _from_gguf(config: Config, spec: ModelSpec) -> ModelSpec:
    return _without_positions(spec, except_every(INTERVAL, len(spec.blocks)))


def _from_config(config: Config, spec: ModelSpec) -> ModelSpec:
    """Read ``no_rope_layers``, a list with 1 for each layer with positions and 0 for each layer without."""
    layers = len(spec.blocks)
    interval = config.count("no_rope_layer_interval", INTERVAL)
    rotated = config.flags("no_rope_layers", layers) or except_every(interval, layers)
    return switched_windows(config, _without_positions(spec, rotated), lambda layer: not rotated[layer])


SMOLLM3 = StandardDecoder(
    "smollm3",
    gguf_pairing="interleaved",
    base=2_000_000.0,
    tied=True,
    gguf_change=_from_gguf,
    config_change=_from_config,
).family()


# Seed-OSS (ByteDance Seed 2025): like Llama, with biases on queries, keys and values.

SEED_OSS = StandardDecoder(
    "seed_oss",
    bias=True,
    keys={"output_bias": "attention_out_bias"},
    gguf_names=GGUF | {"feedforward.norm": "post_attention_norm"},
).family()
