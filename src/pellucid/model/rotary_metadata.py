"""Reads rotary positions: ``rope.*`` of GGUF, ``rope_parameters`` and the older keys of config.json."""

from __future__ import annotations

import math

from pellucid.errors import UnsupportedModel
from pellucid.model.config import Config
from pellucid.model.positions import Pairing, Rotary, RotaryScaling
from pellucid.weights.checkpoint import Checkpoint

FREQUENCIES, SHORT, LONG = "rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"
CONTEXT, TRAINED_CONTEXT = "max_position_embeddings", "original_max_position_embeddings"


def gguf_rotary(checkpoint: Checkpoint, config: Config, pairing: Pairing, head_dim: int) -> Rotary:
    """The rotary positions of heads of width ``head_dim``, from ``<architecture>.rope.*``."""
    scaling = None
    # As in llama.cpp, scaling is linear if the file has a factor without a type, or the older ``rope.scale_linear``.
    kinds = {"none": "none", "linear": "linear", "yarn": "yarn", "longrope": "longrope"}
    kind = config.choice("rope.scaling.type", kinds, "linear")
    factor = config.number("rope.scaling.factor", config.number("rope.scale_linear", 1.0))
    config.check_equal("rope.scaling.factor", config, "rope.scale_linear")
    if kind == "linear" and factor != 1:
        scaling = RotaryScaling("linear", factor, trained_context=config.count("context_length", 0))
    if kind == "yarn" and factor != 1:
        scaling = RotaryScaling(
            "yarn",
            factor,
            trained_context=config.count("rope.scaling.original_context_length"),
            fast=config.number("rope.scaling.yarn_beta_fast", 32.0),
            slow=config.number("rope.scaling.yarn_beta_slow", 1.0),
            magnitude=yarn_magnitude(factor) * config.number("rope.scaling.attn_factor", 1.0),
        )
    if kind == "longrope" or LONG in checkpoint.tensors or SHORT in checkpoint.tensors:
        trained = config.count("rope.scaling.original_context_length")
        scaling = RotaryScaling(
            "longrope",
            config.count("context_length") / trained,
            trained_context=trained,
            magnitude=config.number("rope.scaling.attn_factor", 1.0),
            short=frequency_factors(checkpoint, config, SHORT),
            long=frequency_factors(checkpoint, config, LONG),
        )
    dims = even(
        config, "rope.dimension_count", config.count("rope.dimension_count", head_dim, limit=head_dim)
    )
    base = config.number("rope.freq_base", 10_000.0, low=1.0)
    return Rotary(base, dims, pairing, scaling, frequency_factors(checkpoint, config))


def even(config: Config, key: str, dims: int) -> int:
    """Check that ``dims``, the number of rotated values of a head, is even, and return it.

    Raises:
        FileFormatError: the number is odd. The message names ``key``.
    """
    if dims % 2:
        raise config.error(key, f"is {dims}; it must be an even number")
    return dims


def frequency_factors(checkpoint: Checkpoint, config: Config, name: str = FREQUENCIES) -> tuple[float, ...]:
    """The divisors of the rotary frequencies from a tensor; empty if the file does not have the tensor.

    llama.cpp stores the frequency scaling of Llama 3 and LongRoPE in this way.
    """
    if name not in checkpoint.tensors:
        return ()
    config.tensors.add(name)
    tensor = checkpoint.tensors[name]
    if tensor.format != "F32":
        raise UnsupportedModel(f"{checkpoint.path.name}: {name} is {tensor.format}; only F32 is supported")
    return tuple(float(x) for x in checkpoint.data(tensor.name).view("<f4"))


def rope_parameters(
    config: Config, layer_type: str = "", base_key: str = "rope_theta", default: float = 10_000.0
) -> tuple[float, RotaryScaling | None]:
    """The base and the scaling of rotary positions: of all layers, or of the layers with type ``layer_type``.

    transformers 5 stores both in ``rope_parameters``. If the types of layers differ, each type has its own table.
    Before version 5 the base was a separate key, ``base_key``, and the scaling was in ``rope_scaling``. With several
    types of layers this scaling applied only to "full_attention".

    Raises:
        FileFormatError: the two forms contradict each other.
    """
    parameters = config.table("rope_parameters")
    if layer_type:
        parameters = parameters.table(layer_type)
    if layer_type in ("", "full_attention"):
        older = config.table("rope_scaling")
        if parameters.values and older.values:
            for key in filter(parameters.has, older.values):
                parameters.check_equal(key, older, key)
        parameters = parameters if parameters.values else older
    base = parameters.number("rope_theta", config.number(base_key, default, low=1.0), low=1.0)
    parameters.check_equal("rope_theta", config, base_key)
    return base, _scaling(parameters, config, bool(layer_type))


def _scaling(parameters: Config, config: Config, of_layers: bool) -> RotaryScaling | None:
    # "mrope" changes only the positions in images, which have three numbers. A position in a text has one number.
    kinds = {
        "default": "",
        "dynamic": "dynamic",
        "mrope": "",
        "linear": "linear",
        "llama3": "llama3",
        "yarn": "yarn",
        "longrope": "longrope",
        "su": "longrope",
    }
    kind = parameters.choice("rope_type" if parameters.has("rope_type") else "type", kinds, "default")
    parameters.check_equal("rope_type", parameters, "type")
    if kind == "dynamic":
        return RotaryScaling("dynamic", parameters.number("factor"), trained_context=config.count(CONTEXT))
    if kind == "linear":
        # If each type of layer has its own factor, as in Gemma 3, max_position_embeddings is already scaled.
        trained = 0 if of_layers else config.count(CONTEXT, 0)
        return RotaryScaling("linear", parameters.number("factor"), trained_context=trained)
    if kind == "llama3":
        low, high = parameters.number("low_freq_factor"), parameters.number("high_freq_factor")
        if low > high:
            raise parameters.error(
                "high_freq_factor", f"is {high:g}; it must not be below low_freq_factor = {low:g}"
            )
        trained = parameters.count(TRAINED_CONTEXT)
        parameters.check_equal(TRAINED_CONTEXT, config, TRAINED_CONTEXT)
        return RotaryScaling("llama3", parameters.number("factor"), low, high, trained)
    if kind == "yarn":
        return _yarn(parameters, config)
    if kind == "longrope":
        return _longrope(parameters, config)
    return None


def _longrope(parameters: Config, config: Config) -> RotaryScaling:
    """The parameters of LongRoPE, read as in transformers."""
    where = parameters if parameters.has(TRAINED_CONTEXT) else config
    trained = where.count(TRAINED_CONTEXT)
    parameters.check_equal(TRAINED_CONTEXT, config, TRAINED_CONTEXT)
    factor = parameters.number("factor", config.count(CONTEXT, trained) / trained)
    return RotaryScaling(
        "longrope",
        factor,
        trained_context=trained,
        magnitude=parameters.number("attention_factor", longrope_magnitude(factor, trained)),
        short=tuple(parameters.positive_numbers("short_factor")),
        long=tuple(parameters.positive_numbers("long_factor")),
    )


def longrope_magnitude(factor: float, trained: int) -> float:
    """The factor of cosines and sines that LongRoPE recommends (Ding et al. 2024; transformers)."""
    return 1.0 if factor <= 1 or trained < 2 else math.sqrt(1 + math.log(factor) / math.log(trained))


def _yarn(parameters: Config, config: Config) -> RotaryScaling:
    """The parameters of YaRN, read as in transformers."""
    factor = parameters.number("factor")
    mscale, mscale_all = parameters.optional_number("mscale"), parameters.optional_number("mscale_all_dim")
    magnitude = yarn_magnitude(factor)
    if bool(mscale) != bool(mscale_all):
        raise parameters.error("mscale", "needs mscale_all_dim, and mscale_all_dim needs mscale")
    if mscale and mscale_all:
        magnitude = yarn_magnitude(factor, mscale) / yarn_magnitude(factor, mscale_all)
    # Without this key, transformers takes max_position_embeddings as the trained context.
    stated = parameters.has(TRAINED_CONTEXT)
    return RotaryScaling(
        "yarn",
        factor,
        trained_context=parameters.count(TRAINED_CONTEXT) if stated else config.count(CONTEXT),
        fast=parameters.number("beta_fast", 32.0),
        slow=parameters.number("beta_slow", 1.0),
        magnitude=parameters.number("attention_factor", magnitude),
        whole_pairs=parameters.flag("truncate", True),
    )


def yarn_magnitude(factor: float, scale: float = 1.0) -> float:
    """The factor of cosines and sines that YaRN recommends (Peng et al. 2023, section 3.4)."""
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def rotary_dims(
    config: Config, head_dim: int, default: float = 1.0, older: str = "partial_rotary_factor"
) -> int:
    """Number of rotated values of a head. The file states them as a fraction of ``head_dim``.

    The fraction is in ``rope_parameters``; before transformers 5 it was the top-level key ``older``.

    Raises:
        FileFormatError: the number is not even, or below 2.
    """
    parameters, key = config.table("rope_parameters"), "partial_rotary_factor"
    stated = parameters.number(key, config.number(older, default, high=1.0), high=1.0)
    parameters.check_equal(key, config, older)
    dims = int(head_dim * stated)
    if dims < 2 or dims % 2:
        raise config.error(
            key,
            f"is {stated:g}, so {dims} of the {head_dim} values of a head are rotated; this number must be even and "
            "at least 2",
        )
    return dims
