"""Seed-OSS (ByteDance Seed 2025): like Llama, with biases on queries, keys and values."""

from __future__ import annotations

from dataclasses import replace

from pellucid.model.config import Config
from pellucid.model.spec import ModelSpec
from pellucid.model.standard_decoder import StandardDecoder
from pellucid.model.tensor_names import GGUF


def _output_bias(config: Config, spec: ModelSpec) -> ModelSpec:
    """``attention_bias`` is about queries, keys and values alone; the output's bias has a key of its own."""
    bias, output_bias = config.flag("attention_bias", True), config.flag("attention_out_bias", False)
    return replace(
        spec,
        blocks=tuple(
            replace(block, attention=replace(block.attention, bias=bias, output_bias=output_bias))
            for block in spec.blocks
        ),
    )


SEED_OSS = StandardDecoder(
    "seed_oss",
    gguf_names=GGUF.with_names(feedforward__norm="post_attention_norm"),
    config_change=_output_bias,
).family()
