"""SmolLM3 (Hugging Face 2025): like Llama, without positions in every fourth layer."""

from __future__ import annotations

from dataclasses import replace

from pellucid.model.config import Config
from pellucid.model.spec import ModelSpec
from pellucid.model.standard_decoder import StandardDecoder

INTERVAL = 4


def _without_positions(spec: ModelSpec, rotated: list[bool]) -> ModelSpec:
    return replace(
        spec,
        blocks=tuple(
            block if rotates else replace(block, attention=replace(block.attention, rotary=None))
            for block, rotates in zip(spec.blocks, rotated)
        ),
    )


def _from_gguf(config: Config, spec: ModelSpec) -> ModelSpec:
    return _without_positions(spec, [(i + 1) % INTERVAL != 0 for i in range(len(spec.blocks))])


def _from_config(config: Config, spec: ModelSpec) -> ModelSpec:
    """``no_rope_layers`` holds 1 for each layer with positions, 0 for each without."""
    layers = len(spec.blocks)
    interval = config.count("no_rope_layer_interval", INTERVAL)
    stated = config.switches("no_rope_layers", layers)
    return _without_positions(spec, stated or [(i + 1) % interval != 0 for i in range(layers)])


SMOLLM3 = StandardDecoder(
    "smollm3", gguf_pairing="interleaved", tied=True, gguf_change=_from_gguf, config_change=_from_config
).family()
