"""Granite 4 (IBM 2025): Mamba-2 in most layers, attention in the others, with Granite's multipliers.

Models are dense or have experts.
"""

from __future__ import annotations

from msgspec.structs import replace

from pellucid.model.config import Config
from pellucid.model.families.granite import scaled_config, scaled_gguf
from pellucid.model.families.granitemoe import GRANITE_EXPERTS, GRANITE_MOE_NAMES
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
from pellucid.model.tensor_names import GGUF

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
        GRANITE_EXPERTS,
        optional=True,
        keys={**GRANITE_EXPERTS.keys, "shared_width": "shared_intermediate_size"},
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
