"""Qwen 3, dense (Qwen Team 2025): like Llama, with an RMS norm of each head's queries and keys."""

from __future__ import annotations

from pellucid.model.llama_like import LlamaLike

QWEN3 = LlamaLike("qwen3", head_norm=True).family()
