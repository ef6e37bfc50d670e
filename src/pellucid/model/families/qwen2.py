"""Qwen 2 and 2.5 (Qwen Team 2024): like Llama, with biases on queries, keys and values."""

from __future__ import annotations

from pellucid.model.config import Config
from pellucid.model.sliding_windows import switched_windows
from pellucid.model.spec import ModelSpec
from pellucid.model.standard_decoder import StandardDecoder

WITHOUT_WINDOW = 28  # default number of first layers without a window


def windows(config: Config, spec: ModelSpec) -> ModelSpec:
    """Set the windows of the last layers, if the file switches windows on."""
    first = config.optional_count("max_window_layers") if config.has("max_window_layers") else WITHOUT_WINDOW
    return switched_windows(config, spec, lambda layer: layer >= first)


QWEN2 = StandardDecoder(
    "qwen2",
    also=("qwen2_vl_text", "qwen2_5_vl_text"),
    gguf_also=("qwen2vl",),
    bias=True,
    config_change=windows,
).family()
