"""Llama (Touvron et al. 2023; Llama Team 2024): pre-norm, rotary positions, grouped-query attention, gated SiLU.

In GGUF files the rows of q and k are permuted, so that the two values of a rotary pair are adjacent. In models with
config.json, pairs consist of values from both halves of a head. GGUF files of Mixtral are "llama" with experts.
"""

from __future__ import annotations

from pellucid.model.standard_decoder import StandardDecoder
from pellucid.model.standard_mixture import StandardMixture

LLAMA = StandardDecoder(
    "llama",
    also=("llama_bidirec",),
    gguf_also=("llama-embed",),
    gguf_pairing="interleaved",
    mixture=StandardMixture(normalize=True, optional=True, in_config=False),
    # The rotary frequencies in older safetensors files, which follow from the base.
    unused=(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",),
).family()
