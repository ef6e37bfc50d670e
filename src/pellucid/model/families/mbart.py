"""mBART (Liu et al. 2020) and mBART-50: BART with norms before each part and after the last block."""

from __future__ import annotations

from pellucid.model.encoder_decoder import StandardEncoderDecoder

MBART = StandardEncoderDecoder(
    "mbart", placement="pre", final_norm=True, embedding_norm=True, offset=2
).family()
