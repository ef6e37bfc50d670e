"""Llama (Touvron et al. 2023; Llama Team 2024): pre-norm, rotary positions, grouped-query attention, gated SiLU.

In GGUF files the rows of q and k are permuted so that rotary pairs are neighbours; config.json models pair halves. GGUF
files of Mixtral are Llamas with experts.
"""

from __future__ import annotations

from pellucid.model.standard_decoder import StandardDecoder
from pellucid.model.standard_mixture import StandardMixture

LLAMA = StandardDecoder(
    "llama",
    gguf_pairing="interleaved",
    mixture=StandardMixture(normalize=True, optional=True, in_config=False),
    # The rotary frequencies: read separately in GGUF; in safetensors they only repeat what follows from the base.
    unused=(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",),
).family()
