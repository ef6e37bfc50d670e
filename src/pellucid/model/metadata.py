"""Metadata that several families share: attention, numbers by layer, rotary positions, sliding windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from pellucid.errors import UnsupportedModel
from pellucid.model.config import MAX_LAYERS, Config
from pellucid.model.positions import Pairing, Rotary, RotaryScaling
from pellucid.model.spec import Attention, ModelSpec
from pellucid.weights.checkpoint import Checkpoint

# Reads rotary positions: ``rope.*`` of GGUF, ``rope_parameters`` and the older keys of config.json.

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
    dims = even(config, "rope.dimension_count", config.count("rope.dimension_count", head_dim, limit=head_dim))
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
            raise parameters.error("high_freq_factor", f"is {high:g}; it must not be below low_freq_factor = {low:g}")
        trained = parameters.count(TRAINED_CONTEXT)
        parameters.check_equal(TRAINED_CONTEXT, config, TRAINED_CONTEXT)
        return RotaryScaling("llama3", parameters.number("factor"), low, high, trained)
    if kind == "yarn":
        return _yarn(parameters, config)
    if kind == "longrope":
        return _longrope(parameters, config)
    return None


def _longrope(parameters: Config, config: Config) -> RotaryScaling:
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


def rotary_dims(config: Config, head_dim: int, default: float = 1.0, older: str = "partial_rotary_factor") -> int:
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


# Reads GGUF metadata that several families share: attention, numbers by layer, the size of the vocabulary.


def gguf_attention(checkpoint: Checkpoint, config: Config, pairing: Pairing | None) -> Attention:
    """Causal attention from ``<architecture>.attention.*`` and ``.rope.*``.

    If ``pairing`` is None, the attention has no rotary positions.
    """
    if config.has("attention.key_length"):
        heads, head_dim = config.count("attention.head_count"), config.count("attention.key_length")
    else:
        heads = config.divisor("attention.head_count", "embedding_length")
        head_dim = config.count("embedding_length") // heads
    value_dim = config.count("attention.value_length", head_dim)
    rotary = None if pairing is None else gguf_rotary(checkpoint, config, pairing, head_dim)
    kv_heads = _gguf_kv_heads(config, heads)
    return Attention(heads, kv_heads, head_dim, head_dim**-0.5, rotary=rotary, value_dim=value_dim)


def _gguf_kv_heads(config: Config, heads: int) -> int:
    """The number of key/value heads, G. Models with recurrent layers may list the number of each layer, with zeros."""
    key = "attention.head_count_kv"
    if not config.has(key) or isinstance(config.value(key), int):
        return int(config.divisor(key, "attention.head_count", heads))
    kv_heads = gguf_of_layers(config, key)
    if heads % kv_heads:
        raise config.error(key, f"is {kv_heads}, which does not divide {config.name('attention.head_count')}")
    return kv_heads


def gguf_of_layers(config: Config, key: str) -> int:
    """The number that all layers share: the value or, if the value is a list by layer, its only number above 0."""
    value = config.value(key)
    if value is None or isinstance(value, int):
        return int(config.count(key))
    numbers = set(config.by_layer(key, config.count("block_count", limit=MAX_LAYERS))) - {0}
    if len(numbers) != 1:
        raise config.error(key, f"has {len(numbers)} different numbers above 0; it must have one")
    return numbers.pop()


def gguf_vocabulary(checkpoint: Checkpoint, config: Config) -> int:
    """The vocabulary V: the number of rows of the embedding.

    The result is 1 if the file has no embedding, because a later check reports the missing tensor.

    Raises:
        FileFormatError: the file states another number.
    """
    embedding = checkpoint.tensors.get("token_embd.weight")
    rows = embedding.shape[0] if embedding and embedding.shape else 1
    stated = config.count("vocab_size", rows)
    if stated != rows:
        raise config.error("vocab_size", f"is {stated:,}, but token_embd.weight has {rows:,} rows")
    return rows


# Reads the sliding windows of families in which only some layers have a window (`SlidingWindows`).

LAYER_TYPES = {"sliding_attention": True, "full_attention": False}
GGUF_WINDOW, GGUF_PATTERN = "attention.sliding_window", "attention.sliding_window_pattern"


class SlidingWindows(Struct, frozen=True):
    """The numbers and keys of a family in which every layer has a sliding window, except every ``period``-th layer.

    ``period`` is a default. A file may state another period (in config.json under ``period_key``), or the type of each
    layer. If ``own_positions`` is true, layers with a window have separate rotary positions. Only config.json can state
    a scaling for these positions. ``base`` is the default of their rotary base (0: the base of the other layers), and
    ``base_key`` is the key of this base in config.json before transformers 5.
    """

    period: int
    period_key: str = ""
    own_positions: bool = False
    base: float = 0.0
    base_key: str = "rope_theta"

    def from_config(self, config: Config, spec: ModelSpec, base: float) -> ModelSpec:
        """Set the windows that config.json states. ``base`` is the default rotary base of the other layers."""
        layers, rotary, fields = len(spec.blocks), spec.attention.rotary, {}
        if self.own_positions and rotary:
            own = rope_parameters(config, "sliding_attention", self.base_key, self.base or base)
            fields = {"rotary": Rotary(own[0], rotary.dims, rotary.pairing, own[1])}
        return slide(spec, self._layers(config, layers), config.count("sliding_window"), **fields)

    def _layers(self, config: Config, layers: int) -> list[bool]:
        period = config.count(self.period_key, self.period) if self.period_key else self.period
        by_period = except_every(period, layers)
        stated = sliding_layers(config, by_period)
        if config.has(self.period_key) and stated != by_period:
            raise config.error(
                self.period_key, f"is {period}, but layer_types has another period: remove one of the two"
            )
        return stated

    def from_gguf(self, config: Config, spec: ModelSpec) -> ModelSpec:
        """Set the windows that GGUF states. ``config`` reads keys with the architecture as prefix."""
        layers, rotary, fields = len(spec.blocks), spec.attention.rotary, {}
        if self.own_positions and rotary:
            base = config.number("rope.freq_base_swa", self.base or rotary.base, low=1.0)
            fields = {"rotary": Rotary(base, rotary.dims, rotary.pairing)}
        if config.is_list(GGUF_PATTERN):
            sliding = config.flags(GGUF_PATTERN, layers) or []
        else:
            sliding = except_every(config.count(GGUF_PATTERN, self.period), layers)
        return slide(spec, sliding, config.count(GGUF_WINDOW), **fields)


def sliding_layers(config: Config, default: list[bool]) -> list[bool]:
    """True for each layer with a sliding window, from ``layer_types`` or else from ``default``."""
    return config.choices("layer_types", LAYER_TYPES, len(default)) or default


def switched_windows(config: Config, spec: ModelSpec, by_default: Callable[[int], bool]) -> ModelSpec:
    """Set the windows that ``use_sliding_window`` switches on. ``layer_types`` names the layers with a window; without
    ``layer_types``, ``by_default`` selects them.
    """
    window = config.optional_count("sliding_window") if config.flag("use_sliding_window", False) else 0
    default = [window > 0 and by_default(layer) for layer in range(len(spec.blocks))]
    sliding = sliding_layers(config, default)
    if any(sliding) and not window:
        raise config.error(
            "layer_types",
            "has sliding_attention, but there is no window: set use_sliding_window to true and sliding_window to a "
            "number",
        )
    return slide(spec, sliding, window) if any(sliding) else spec


def slide(spec: ModelSpec, sliding: Sequence[bool], window: int, **fields: Any) -> ModelSpec:
    """Set the window of the sliding layers to ``window`` tokens, and replace further ``fields`` of their attention."""
    return spec.change_attention(
        lambda layer, attention: replace(attention, window=window, **fields) if sliding[layer] else attention
    )


def except_every(n: int, layers: int) -> list[bool]:
    """For each layer, False if its number (from 1) is a multiple of ``n``, otherwise True."""
    return [(layer + 1) % n != 0 for layer in range(layers)]
