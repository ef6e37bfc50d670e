"""Qwen 2 and 2.5 (Qwen Team 2024): like Llama, with biases on queries, keys and values."""

from __future__ import annotations

from pellucid.model.standard_decoder import StandardDecoder

QWEN2 = StandardDecoder(
    "qwen2", also=("qwen2_vl_text", "qwen2_5_vl_text"), gguf_also=("qwen2vl",), bias=True
).family()
