"""Qwen 3 with experts (Qwen Team 2025): Qwen 3 with a mixture. GGUF files have normalized expert weights by default."""

from __future__ import annotations

from pellucid.model.sliding_windows import switched_windows
from pellucid.model.standard_decoder import StandardDecoder
from pellucid.model.standard_mixture import StandardMixture

QWEN3_MOE = StandardDecoder(
    "qwen3_moe",
    architecture="qwen3moe",
    head_norm=True,
    mixture=StandardMixture(gguf_normalize=True, sparse_step=True),
    config_change=lambda config, spec: switched_windows(config, spec, lambda _: True),
).family()
