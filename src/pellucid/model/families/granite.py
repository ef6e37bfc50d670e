"""Granite 3 and 4 (IBM 2024, 2025): dense, with experts, and with Mamba-2."""

from __future__ import annotations

from msgspec.structs import replace

from pellucid.model.config import Config
from pellucid.model.hybrid import (
    SHAPE_KEYS,
    config_mamba,
    gguf_mamba,
    gguf_recurrent,
    layer_types,
    mixed,
    with_gguf_mamba,
    with_mamba,
)
from pellucid.model.spec import ModelSpec
from pellucid.model.standard_decoder import StandardDecoder
from pellucid.model.standard_mixture import StandardMixture
from pellucid.model.tensor_names import GGUF, TRANSFORMERS

# Granite 3 (IBM 2024): like Llama, with multipliers of the embedding, the scores, the residuals and the logits.

KEYS = ("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling")
GGUF_KEYS = ("embedding_scale", "attention.scale", "residual_scale", "logit_scale")


def _scaled(config: Config, spec: ModelSpec, keys: tuple[str, ...], usual_scores: float) -> ModelSpec:
    """Apply the multipliers of the embedding, the scores, the residuals and the logits. ``keys`` has this order."""
    defaults = (1.0, usual_scores, 1.0, 1.0)
    embedding, scores, residual, logits = map(config.number, keys, defaults)
    assert spec.head is not None
    return replace(
        spec.with_attention(scale=scores).with_blocks(residual_scale=residual),
        embedding=replace(spec.embedding, scale=embedding),
        head=replace(spec.head, scale=1 / logits),
    )


def scaled_config(config: Config, spec: ModelSpec) -> ModelSpec:
    """Apply Granite's multipliers from config.json."""
    return _scaled(config, spec, KEYS, 1.0)


def scaled_gguf(config: Config, spec: ModelSpec) -> ModelSpec:
    """Apply Granite's multipliers from GGUF."""
    return _scaled(config, spec, GGUF_KEYS, spec.attention.scale)


def scaled_rotary_gguf(config: Config, spec: ModelSpec) -> ModelSpec:
    """Apply Granite's multipliers from GGUF.

    The value false of ``rope.scaling.finetuned`` is refused, because llama.cpp reads it as "no rotary positions".
    """
    config.refuse("rope.scaling.finetuned", True)
    return scaled_gguf(config, spec)


GRANITE = StandardDecoder(
    "granite", gguf_pairing="interleaved", gguf_change=scaled_rotary_gguf, config_change=scaled_config
).family()


# Granite 3 with experts (IBM 2024): Granite with a mixture. Newer models ("shared") also have a shared expert.
#
# One tensor has the gates and up-projections of all experts.

GRANITE_EXPERTS = StandardMixture(normalize=True, keys={"width": "", "normalize": ""})
GRANITE_MOE_NAMES = TRANSFORMERS | {
    "feedforward.router": "block_sparse_moe.router.layer",
    "feedforward.experts.gate,up": "block_sparse_moe.input_linear",
    "feedforward.experts.down": "block_sparse_moe.output_linear",
    "feedforward.shared.gate,up": "shared_mlp.input_linear",
    "feedforward.shared.down": "shared_mlp.output_linear",
}
_GRANITE_MOE = StandardDecoder(
    "granitemoe",
    gguf_pairing="interleaved",
    mixture=GRANITE_EXPERTS,
    keys={"feedforward_bias": ""},
    names=GRANITE_MOE_NAMES,
    gguf_change=scaled_rotary_gguf,
    config_change=scaled_config,
)
GRANITE_MOE = _GRANITE_MOE.family()
GRANITE_MOE_SHARED = replace(
    _GRANITE_MOE,
    name="granitemoeshared",
    architecture=None,
    mixture=replace(GRANITE_EXPERTS, keys={**GRANITE_EXPERTS.keys, "shared_width": "shared_intermediate_size"}),
).family()


# Granite 4 (IBM 2025): Mamba-2 in most layers, attention in the others, with Granite's multipliers.
#
# Models are dense or have experts.

POSITIONS = {"rope": True, "nope": False, "none": False}


def _dense(spec: ModelSpec, width: int) -> ModelSpec:
    """Set the width of dense feed-forwards to the width that the file states for the shared expert."""
    return spec.change_dense(lambda _, dense: replace(dense, width=width or dense.width))


def _from_config(config: Config, spec: ModelSpec) -> ModelSpec:
    layers = len(spec.blocks)
    spec = scaled_config(config, spec)
    if not config.choice("position_embedding_type", POSITIONS, "nope"):
        spec = spec.with_attention(rotary=None)
    spec = _dense(spec, config.count("shared_intermediate_size"))
    where = layer_types(config, "layer_types", layers) or [True] * layers
    return mixed(spec, config_mamba(config, spec.blocks[0].norm), where)


def _from_gguf(config: Config, spec: ModelSpec) -> ModelSpec:
    spec = scaled_gguf(config, spec)
    if not config.flag("rope.scaling.finetuned", True):  # false means "no rotary positions", as in llama.cpp
        spec = spec.with_attention(rotary=None)
    spec = _dense(spec, config.optional_count("expert_shared_feed_forward_length"))
    return mixed(spec, gguf_mamba(config, spec.blocks[0].norm), gguf_recurrent(config, len(spec.blocks)))


GRANITE_MOE_HYBRID = StandardDecoder(
    "granitemoehybrid",
    architecture="granitehybrid",
    gguf_pairing="interleaved",
    mixture=replace(
        GRANITE_EXPERTS, optional=True, keys={**GRANITE_EXPERTS.keys, "shared_width": "shared_intermediate_size"}
    ),
    pattern=("linear_attention", "linear_attention", "full_attention"),
    kv_by_layer=True,
    keys={"feedforward_bias": "", **SHAPE_KEYS},
    names=with_mamba(
        GRANITE_MOE_NAMES
        | {
            "recurrent.norm": "input_layernorm",
            "feedforward.gate,up": "shared_mlp.input_linear",
            "feedforward.down": "shared_mlp.output_linear",
        },
        "mamba",
    ),
    gguf_names=with_gguf_mamba(GGUF),
    gguf_change=_from_gguf,
    config_change=_from_config,
).family()
