"""Seed-OSS (ByteDance Seed 2025): like Llama, with biases on queries, keys and values."""

from __future__ import annotations

from pellucid.model.standard_decoder import StandardDecoder
from pellucid.model.tensor_names import GGUF

SEED_OSS = StandardDecoder(
    "seed_oss",
    bias=True,
    keys={"output_bias": "attention_out_bias"},
    gguf_names=GGUF | {"feedforward.norm": "post_attention_norm"},
).family()
