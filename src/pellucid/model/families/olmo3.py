"""OLMo 3 (OLMo Team 2025): OLMo 2 with a sliding window in three of four layers, whose positions are not scaled."""

from __future__ import annotations

from dataclasses import replace

from pellucid.model.common_metadata import rope_parameters, sliding_blocks, sliding_layers
from pellucid.model.config import Config
from pellucid.model.family import Family
from pellucid.model.spec import ModelSpec
from pellucid.model.standard_decoder import StandardDecoder

BASE = 500_000.0
PATTERN = 4  # every fourth layer sees everything


def _from_config(config: Config, spec: ModelSpec) -> ModelSpec:
    sliding = sliding_layers(config, [(i + 1) % PATTERN != 0 for i in range(len(spec.blocks))])
    base, scaling = rope_parameters(config, "full_attention", default=BASE)
    local, local_scaling = rope_parameters(config, "sliding_attention", default=BASE)
    blocks = []
    for block, slides in zip(sliding_blocks(spec.blocks, sliding, config.count("sliding_window")), sliding):
        assert block.attention.rotary is not None
        rotary = replace(
            block.attention.rotary,
            base=local if slides else base,
            scaling=local_scaling if slides else scaling,
        )
        blocks.append(replace(block, attention=replace(block.attention, rotary=rotary)))
    return replace(spec, blocks=tuple(blocks))


_DECODER = StandardDecoder("olmo3", whole_norm=True, placement="output", config_change=_from_config)
OLMO3 = Family("olmo3", safetensors={"olmo3": _DECODER.from_config})  # GGUF files say "olmo2"
