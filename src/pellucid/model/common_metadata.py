"""Readers of metadata that several families share: attention in GGUF, rotary parameters and pooling in JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping

from pellucid.errors import UnsupportedModel
from pellucid.errors.messages import brief
from pellucid.model.config import MAX_LAYERS, Config
from pellucid.model.positions import Pairing, Rotary, RotaryScaling
from pellucid.model.spec import Activation, Attention, Pooling
from pellucid.weights.checkpoint import Checkpoint
from pellucid.weights.safetensors import read_json, read_json_list

ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}
"""Activation functions by their names in transformers."""


def gguf_attention(checkpoint: Checkpoint, config: Config, pairing: Pairing | None) -> Attention:
    """Causal attention from ``<architecture>.attention.*`` and ``.rope.*``. ``pairing`` None: no rotary positions."""
    heads, head_dim = heads_of(config, "attention.head_count", "attention.key_length", "embedding_length")
    value_dim = config.count("attention.value_length", head_dim)
    rotary = None if pairing is None else _gguf_rotary(checkpoint, config, pairing, head_dim)
    kv_heads = _gguf_kv_heads(config, heads)
    return Attention(heads, kv_heads, head_dim, head_dim**-0.5, rotary=rotary, value_dim=value_dim)


def _gguf_kv_heads(config: Config, heads: int) -> int:
    """G. In models with recurrent layers the file may list G for each layer, with 0 for layers without attention."""
    key = "attention.head_count_kv"
    if not config.has(key) or isinstance(config.value(key), int):
        return int(config.divisor(key, "attention.head_count", heads))
    kv_heads = gguf_of_layers(config, key)
    if heads % kv_heads:
        raise config.error(key, f"is {kv_heads}, which does not divide {config.name('attention.head_count')}")
    return kv_heads


def gguf_of_layers(config: Config, key: str) -> int:
    """A number, or the only number besides 0 in a list with a number for each layer."""
    value = config.value(key)
    if value is None or isinstance(value, int):
        return int(config.count(key))
    numbers = set(config.by_layer(key, config.count("block_count", limit=MAX_LAYERS))) - {0}
    if len(numbers) != 1:
        raise config.error(key, f"has {len(numbers)} different numbers above 0; it must have one")
    return numbers.pop()


def _gguf_rotary(checkpoint: Checkpoint, config: Config, pairing: Pairing, head_dim: int) -> Rotary:
    scaling = None
    # As in llama.cpp, a factor without a type means linear scaling, and so does the older key.
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
    """Check that ``dims``, the number of rotated values of a head, is even. Returns it.

    Raises:
        FileFormatError: the number is odd. The message names ``key``.
    """
    if dims % 2:
        raise config.error(key, f"is {dims}; it must be an even number")
    return dims


def heads_of(config: Config, heads_key: str, head_dim_key: str, width_key: str) -> tuple[int, int]:
    """H and K. The default of K is D / H."""
    if config.has(head_dim_key):
        return config.count(heads_key), config.count(head_dim_key)
    heads = config.divisor(heads_key, width_key)
    return heads, config.count(width_key) // heads


def gguf_vocabulary(checkpoint: Checkpoint, config: Config) -> int:
    """V, the number of rows of the embedding; 1 if the file has no embedding (a later check reports this).

    Raises:
        FileFormatError: the file states another number.
    """
    embedding = checkpoint.tensors.get("token_embd.weight")
    rows = embedding.shape[0] if embedding and embedding.shape else 1
    stated = config.count("vocab_size", rows)
    if stated != rows:
        raise config.error("vocab_size", f"is {stated:,}, but token_embd.weight has {rows:,} rows")
    return rows


def tied_head(checkpoint: Checkpoint, config: Config, default: bool) -> bool:
    """True if the output projection is tied to the embedding: the file says so and has no separate matrix.

    If the file says so but has a separate matrix, this matrix is used, as in transformers 5 and llama.cpp.
    """
    return config.flag("tie_word_embeddings", default) and "lm_head.weight" not in checkpoint.tensors


FREQUENCIES, SHORT, LONG = "rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"


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


STATED, ORIGINAL = "max_position_embeddings", "original_max_position_embeddings"


def rope_parameters(
    config: Config, layer_type: str = "", base_key: str = "rope_theta", default: float = 10_000.0
) -> tuple[float, RotaryScaling | None]:
    """Base and scaling of the rotary positions, optionally of one type of layer.

    transformers 5 has both in ``rope_parameters``. If the types of layers differ, each type has its own table. Before
    version 5 the base was a separate key, ``base_key``, and the scaling was in ``rope_scaling``. With several types of
    layers this scaling applied to "full_attention".

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
    # With "mrope" a position in an image has three numbers. A position in a text has one.
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
        return RotaryScaling("dynamic", parameters.number("factor"), trained_context=config.count(STATED))
    if kind == "linear":
        # With a factor for each type of layer, as in Gemma 3, the file states the scaled context.
        trained = 0 if of_layers else config.count(STATED, 0)
        return RotaryScaling("linear", parameters.number("factor"), trained_context=trained)
    if kind == "llama3":
        low, high = parameters.number("low_freq_factor"), parameters.number("high_freq_factor")
        if low > high:
            raise parameters.error(
                "high_freq_factor", f"is {high:g}; it must not be below low_freq_factor = {low:g}"
            )
        trained = parameters.count(ORIGINAL)
        parameters.check_equal(ORIGINAL, config, ORIGINAL)
        return RotaryScaling("llama3", parameters.number("factor"), low, high, trained)
    if kind == "yarn":
        return _yarn(parameters, config)
    if kind == "longrope":
        return _longrope(parameters, config)
    return None


def _longrope(parameters: Config, config: Config) -> RotaryScaling:
    """The parameters of LongRoPE, read as in transformers."""
    where = parameters if parameters.has(ORIGINAL) else config
    trained = where.count(ORIGINAL)
    parameters.check_equal(ORIGINAL, config, ORIGINAL)
    factor = parameters.number("factor", config.count(STATED, trained) / trained)
    return RotaryScaling(
        "longrope",
        factor,
        trained_context=trained,
        magnitude=parameters.number("attention_factor", longrope_magnitude(factor, trained)),
        short=tuple(parameters.positive_numbers("short_factor")),
        long=tuple(parameters.positive_numbers("long_factor")),
    )


def longrope_magnitude(factor: float, trained: int) -> float:
    """Recommended factor of cosines and sines of LongRoPE (Ding et al. 2024; transformers)."""
    return 1.0 if factor <= 1 or trained < 2 else math.sqrt(1 + math.log(factor) / math.log(trained))


def _yarn(parameters: Config, config: Config) -> RotaryScaling:
    """The parameters of YaRN, read as in transformers."""
    factor = parameters.number("factor")
    mscale, mscale_all = parameters.optional_number("mscale"), parameters.optional_number("mscale_all_dim")
    magnitude = yarn_magnitude(factor)
    if bool(mscale) != bool(mscale_all):
        raise parameters.error("mscale", "and mscale_all_dim belong together: one of them is missing")
    if mscale and mscale_all:
        magnitude = yarn_magnitude(factor, mscale) / yarn_magnitude(factor, mscale_all)
    stated = parameters.has(ORIGINAL)  # otherwise transformers extends the context of the whole model
    return RotaryScaling(
        "yarn",
        factor,
        trained_context=parameters.count(ORIGINAL) if stated else config.count(STATED),
        fast=parameters.number("beta_fast", 32.0),
        slow=parameters.number("beta_slow", 1.0),
        magnitude=parameters.number("attention_factor", magnitude),
        whole_pairs=parameters.flag("truncate", True),
    )


def yarn_magnitude(factor: float, scale: float = 1.0) -> float:
    """Recommended factor of cosines and sines of YaRN (Peng et al. 2023, section 3.4)."""
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
            f"is {stated:g}, which is {dims} of head_dim = {head_dim} values; it must be an even number from 2",
        )
    return dims


POOLING, MODULES = "1_Pooling/config.json", "modules.json"
WITHOUT_WEIGHTS = ("Transformer", "Pooling", "Normalize")
"""Modules of sentence-transformers without weights: sentence vectors here already include them."""


def sentence_pooling(checkpoint: Checkpoint, config: Config, width: int) -> Pooling:
    """Mean pooling of rows of ``width`` values, the only implemented kind.

    Raises:
        UnsupportedModel: the files of sentence-transformers in the model's folder require another kind of pooling, or
            further modules, which have weights in separate folders.
    """
    modules = checkpoint.path / MODULES
    if modules.is_file():
        for module in read_json_list(modules):
            stated = module if isinstance(module, dict) else {}
            kind, where = str(stated.get("type", "")).rpartition(".")[2], stated.get("path")
            if kind not in WITHOUT_WEIGHTS or (kind == "Pooling" and f"{where}/config.json" != POOLING):
                raise UnsupportedModel(
                    f"{checkpoint.path.name}: {MODULES}: module {brief(kind)} in {brief(where)} is not supported, and "
                    f"would change the vectors (known: {', '.join(WITHOUT_WEIGHTS)})"
                )
    path = checkpoint.path / POOLING
    if path.is_file():
        asked = Config(read_json(path), path)
        asked.refuse("pooling_mode", "mean")
        asked.refuse("include_prompt", True)
        for key in asked.values:
            if key.startswith("pooling_mode_"):
                asked.refuse(key, key == "pooling_mode_mean_tokens")
    dimensions = config.number_set("matryoshka_dimensions", width + 1) - {0}
    shortens = bool(dimensions) or config.flag("is_matryoshka", False)
    return Pooling(matryoshka=tuple(sorted(dimensions)) if shortens else None)
