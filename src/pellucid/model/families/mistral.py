"""Mistral (Jiang et al. 2023): like Llama, with a sliding window in the first version. GGUF files say "llama"."""

from __future__ import annotations

from pellucid.model.standard_decoder import StandardDecoder

MISTRAL = StandardDecoder("mistral", architecture=None, keys={"window": "sliding_window"}).family()
