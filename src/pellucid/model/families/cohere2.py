"""Command R7B and A (Cohere 2025): one layer norm for attention and feed-forward beside each other.

Layers with a sliding window rotate, those that see everything have no positions.
"""

from __future__ import annotations

from dataclasses import replace

from pellucid.model.common_metadata import sliding_blocks, sliding_layers
from pellucid.model.config import Config
from pellucid.model.spec import ModelSpec, Norm
from pellucid.model.standard_decoder import StandardDecoder

PATTERN = 4  # every fourth layer sees everything


def _mixed(spec: ModelSpec, sliding: list[bool], window: int, logits: float) -> ModelSpec:
    assert spec.head is not None
    blocks = sliding_blocks(spec.blocks, sliding, window)
    return replace(
        spec,
        blocks=tuple(
            block if slides else replace(block, attention=replace(block.attention, rotary=None))
            for block, slides in zip(blocks, sliding)
        ),
        head=replace(spec.head, scale=logits),
    )


def _by_pattern(spec: ModelSpec, pattern: int) -> list[bool]:
    return [(i + 1) % pattern != 0 for i in range(len(spec.blocks))]


def _from_gguf(config: Config, spec: ModelSpec) -> ModelSpec:
    pattern = config.count("attention.sliding_window_pattern", PATTERN)
    window = config.count("attention.sliding_window")
    return _mixed(spec, _by_pattern(spec, pattern), window, config.number("logit_scale", 1.0))


def _from_config(config: Config, spec: ModelSpec) -> ModelSpec:
    pattern = config.count("sliding_window_pattern", PATTERN)
    sliding = sliding_layers(config, _by_pattern(spec, pattern))
    return _mixed(spec, sliding, config.count("sliding_window"), config.number("logit_scale", 0.0625))


COHERE2 = StandardDecoder(
    "cohere2",
    gguf_pairing="interleaved",
    pairing="interleaved",
    norm=Norm("layer", 1e-5, bias=False),
    placement="shared",
    tied=True,
    keys={"norm_eps": "layer_norm_eps"},
    gguf_change=_from_gguf,
    config_change=_from_config,
).family()
