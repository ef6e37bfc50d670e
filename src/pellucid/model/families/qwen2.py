"""Qwen 2 and 2.5 (Qwen Team 2024): like Llama, with biases on queries, keys and values."""

from __future__ import annotations

from pellucid.model.decoder import DecoderReader

QWEN2 = DecoderReader("qwen2", bias=True).family()
