"""Pieces of metadata that several families write alike: attention in GGUF, rotary parameters in config.json."""

from __future__ import annotations

from typing import Any

from pellucid.errors import UnsupportedModel
from pellucid.model.config import Config
from pellucid.model.spec import Attention, Pairing, Rotary, RotaryScaling
from pellucid.weights.checkpoint import Checkpoint


def gguf_attention(checkpoint: Checkpoint, config: Config, pairing: Pairing) -> Attention:
    """Causal attention from ``<architecture>.attention.*`` and ``.rope.*``."""
    heads = config.count("attention.head_count")
    head_dim = config.count("attention.key_length", config.count("embedding_length") // heads)
    value_dim = config.count("attention.value_length", head_dim)
    if value_dim != head_dim:
        raise UnsupportedModel(
            f"{config.path.name}: keys of {head_dim} and values of {value_dim} is not supported"
        )
    scaling = None
    kind = config.one_of("rope.scaling.type", {"none": "none", "linear": "linear"}, "none")
    if kind == "linear":
        scaling = RotaryScaling("linear", config.number("rope.scaling.factor"))
    rotary = Rotary(
        config.number("rope.freq_base", 10_000.0),
        config.count("rope.dimension_count", head_dim),
        pairing,
        scaling,
        _frequency_factors(checkpoint),
    )
    return Attention(
        heads, config.count("attention.head_count_kv", heads), head_dim, head_dim**-0.5, rotary=rotary
    )


def _frequency_factors(checkpoint: Checkpoint) -> tuple[float, ...]:
    """llama.cpp stores Llama 3's stretched frequencies as a tensor of divisors."""
    if "rope_freqs.weight" not in checkpoint.tensors:
        return ()
    tensor = checkpoint.tensors["rope_freqs.weight"]
    if tensor.format != "F32":
        raise UnsupportedModel(
            f"{checkpoint.path.name}: rope_freqs.weight is {tensor.format}; only F32 is supported"
        )
    return tuple(float(x) for x in checkpoint.data(tensor.name).view("<f4"))


def rope_parameters(
    config: Config, layer_type: str = "", default: float = 10_000.0
) -> tuple[float, RotaryScaling | None]:
    """Base and scaling from ``rope_parameters`` (transformers 5, perhaps by layer type) or the older keys."""
    parameters: Config = config.table("rope_parameters")
    if layer_type and isinstance(parameters.values.get(layer_type), dict):
        parameters = parameters.table(layer_type)
    elif layer_type == "sliding_attention":
        return default, None
    if not parameters.values:
        parameters = config.table("rope_scaling")
    base: Any = parameters.number("rope_theta", config.number("rope_theta", default))
    kind_key = "rope_type" if parameters.has("rope_type") else "type"
    kind = parameters.one_of(kind_key, {"default": "", "linear": "linear", "llama3": "llama3"}, "default")
    if kind == "linear":
        return base, RotaryScaling("linear", parameters.number("factor"))
    if kind == "llama3":
        return base, RotaryScaling(
            "llama3",
            parameters.number("factor"),
            parameters.number("low_freq_factor"),
            parameters.number("high_freq_factor"),
            parameters.count("original_max_position_embeddings"),
        )
    return base, None
