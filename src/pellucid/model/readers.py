"""Pieces of metadata that several families write alike: attention in GGUF, rotary parameters in config.json."""

from __future__ import annotations

from pellucid.errors import FileFormatError, UnsupportedModel
from pellucid.model.config import Config
from pellucid.model.spec import Attention, Pairing, Rotary, RotaryScaling
from pellucid.weights.checkpoint import Checkpoint


def gguf_attention(checkpoint: Checkpoint, config: Config, pairing: Pairing) -> Attention:
    """Causal attention from ``<architecture>.attention.*`` and ``.rope.*``."""
    heads, head_dim = heads_of(config, "attention.head_count", "attention.key_length", "embedding_length")
    value_dim = config.count("attention.value_length", head_dim)
    if value_dim != head_dim:
        raise UnsupportedModel(
            f"{config.path.name}: keys of {head_dim} and values of {value_dim} is not supported"
        )
    scaling = None
    kind = config.one_of("rope.scaling.type", {"none": "none", "linear": "linear"}, "none")
    if kind == "linear":
        scaling = RotaryScaling("linear", config.number("rope.scaling.factor"))
    dims = config.count("rope.dimension_count", head_dim, limit=head_dim)
    if dims % 2:
        raise FileFormatError(
            config.path, f"{config.prefix}rope.dimension_count", f"is {dims}, an odd number"
        )
    rotary = Rotary(
        config.number("rope.freq_base", 10_000.0, low=1.0),
        dims,
        pairing,
        scaling,
        _frequency_factors(checkpoint),
    )
    kv_heads = config.divisor("attention.head_count_kv", "attention.head_count", heads)
    return Attention(heads, kv_heads, head_dim, head_dim**-0.5, rotary=rotary)


def heads_of(config: Config, heads_key: str, head_dim_key: str, width_key: str) -> tuple[int, int]:
    """H and K. Where the file does not say K, the heads share the model's width D."""
    if config.has(head_dim_key):
        return config.count(heads_key), config.count(head_dim_key)
    heads = config.divisor(heads_key, width_key)
    return heads, config.count(width_key) // heads


def gguf_vocabulary(checkpoint: Checkpoint) -> int:
    """V, which GGUF states as the rows of the embedding only; 1 if that is missing, which is reported elsewhere."""
    embedding = checkpoint.tensors.get("token_embd.weight")
    return embedding.shape[0] if embedding and embedding.shape else 1


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
    base = parameters.number("rope_theta", config.number("rope_theta", default, low=1.0), low=1.0)
    kind_key = "rope_type" if parameters.has("rope_type") else "type"
    kind = parameters.one_of(kind_key, {"default": "", "linear": "linear", "llama3": "llama3"}, "default")
    if kind == "linear":
        return base, RotaryScaling("linear", parameters.number("factor"))
    if kind == "llama3":
        low, high = parameters.number("low_freq_factor"), parameters.number("high_freq_factor")
        if low >= high:
            problem = f"is {high:g}; it must be above low_freq_factor = {low:g}"
            raise FileFormatError(config.path, "high_freq_factor", problem)
        return base, RotaryScaling(
            "llama3",
            parameters.number("factor"),
            low,
            high,
            parameters.count("original_max_position_embeddings"),
        )
    return base, None
