"""Qwen 3, dense (Qwen Team 2025): like Llama, with an RMS norm of the queries and keys of each head."""

from __future__ import annotations

from pellucid.model.families.qwen2 import windows
from pellucid.model.standard_decoder import StandardDecoder

QWEN3 = StandardDecoder(
    "qwen3", also=("qwen3_vl_text",), gguf_also=("qwen3vl",), head_norm=True, config_change=windows
).family()
