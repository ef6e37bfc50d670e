"""Mistral (Jiang et al. 2023): like Llama, with a sliding window in the first version. GGUF files say "llama"."""

from __future__ import annotations

from dataclasses import replace

from pellucid.model.common_metadata import sliding_blocks
from pellucid.model.config import Config
from pellucid.model.family import Family
from pellucid.model.spec import ModelSpec
from pellucid.model.standard_decoder import StandardDecoder


def _window(config: Config, spec: ModelSpec) -> ModelSpec:
    window = config.window("sliding_window")
    return replace(spec, blocks=sliding_blocks(spec.blocks, [True] * len(spec.blocks), window))


MISTRAL = Family(
    "mistral", safetensors={"mistral": StandardDecoder("mistral", config_change=_window).from_config}
)
