"""Qwen 1.5 and 2 with experts (Qwen Team 2024): Qwen 2 with a mixture and a gated shared expert."""

from __future__ import annotations

from pellucid.model.families.qwen2 import windows
from pellucid.model.standard_decoder import StandardDecoder
from pellucid.model.standard_mixture import StandardMixture
from pellucid.model.tensor_names import TRANSFORMERS

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
