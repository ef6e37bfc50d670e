"""GLM-4 (GLM Team 2024, the version of 0414): sandwich norms, half of each head rotated, fused gates."""

from __future__ import annotations

from dataclasses import replace

from pellucid.model.config import Config
from pellucid.model.spec import ModelSpec
from pellucid.model.standard_decoder import StandardDecoder
from pellucid.model.tensor_names import GGUF, TRANSFORMERS


def _only_inputs(config: Config, spec: ModelSpec) -> ModelSpec:
    """``attention_bias`` is about queries, keys and values alone, and is on by default."""
    bias = config.flag("attention_bias", True)
    return replace(
        spec,
        blocks=tuple(
            replace(block, attention=replace(block.attention, bias=bias, output_bias=False))
            for block in spec.blocks
        ),
    )


GLM4 = StandardDecoder(
    "glm4",
    gguf_pairing="interleaved",
    pairing="interleaved",
    rotated=0.5,
    placement="sandwich",
    gguf_names=GGUF.with_names(feedforward__gate="ffn_up"),
    names=TRANSFORMERS.with_names(
        attention__post_norm="post_self_attn_layernorm",
        feedforward__post_norm="post_mlp_layernorm",
        feedforward__gate="mlp.gate_up_proj",
        feedforward__up="mlp.gate_up_proj",
    ),
    config_change=_only_inputs,
).family()
