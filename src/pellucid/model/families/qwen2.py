"""Qwen 2 and 2.5 (Qwen Team 2024): like Llama, with biases on queries, keys and values."""

from __future__ import annotations

from pellucid.model.llama_like import LlamaLike

QWEN2 = LlamaLike("qwen2", bias=True).family()
