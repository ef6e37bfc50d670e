"""Qwen 1.5 to 3, dense or with experts (Qwen Team 2024, 2025)."""

from __future__ import annotations

from pellucid.model.config import Config
from pellucid.model.metadata import switched_windows
from pellucid.model.spec import ModelSpec
from pellucid.model.standard_decoder import StandardDecoder
from pellucid.model.standard_mixture import StandardMixture
from pellucid.model.tensor_names import TRANSFORMERS

# Qwen 2 and 2.5 (Qwen Team 2024): like Llama, with biases on queries, keys and values.

WITHOUT_WINDOW = 28  # default number of first layers without a window


def windows(config: Config, spec: ModelSpec) -> ModelSpec:
    """Set the windows of the last layers, if the file switches windows on."""
    first = config.optional_count("max_window_layers") if config.has("max_window_layers") else WITHOUT_WINDOW
    return switched_windows(config, spec, lambda layer: layer >= first)


QWEN2 = StandardDecoder(
    "qwen2", also=("qwen2_vl_text", "qwen2_5_vl_text"), gguf_also=("qwen2vl",), bias=True, config_change=windows
).family()


# Qwen 1.5 and 2 with experts (Qwen Team 2024): Qwen 2 with a mixture and a gated shared expert.

QWEN2_MOE = StandardDecoder(
    "qwen2_moe",
    architecture="qwen2moe",
    bias=True,
    mixture=StandardMixture(
        shared_gate=True, sparse_step=True, keys={"shared_width": "shared_expert_intermediate_size"}
    ),
    keys={"bias": "qkv_bias", "output_bias": ""},
    config_change=windows,
    names=TRANSFORMERS
    | {
        "feedforward.shared.gate": "mlp.shared_expert.gate_proj",
        "feedforward.shared.up": "mlp.shared_expert.up_proj",
        "feedforward.shared.down": "mlp.shared_expert.down_proj",
        "feedforward.shared_gate": "mlp.shared_expert_gate",
    },
).family()


# Qwen 3, dense (Qwen Team 2025): like Llama, with an RMS norm of the queries and keys of each head.

QWEN3 = StandardDecoder(
    "qwen3", also=("qwen3_vl_text",), gguf_also=("qwen3vl",), head_norm=True, config_change=windows
).family()


# Qwen 3 with experts (Qwen Team 2025): Qwen 3 with a mixture. GGUF files have normalized expert weights by default.

QWEN3_MOE = StandardDecoder(
    "qwen3_moe",
    architecture="qwen3moe",
    head_norm=True,
    mixture=StandardMixture(gguf_normalize=True, sparse_step=True),
    config_change=lambda config, spec: switched_windows(config, spec, lambda _: True),
).family()
