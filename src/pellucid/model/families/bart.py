"""BART (Lewis et al. 2019): norms after each part and after the embedding, learned positions."""

from __future__ import annotations

from pellucid.model.encoder_decoder import StandardEncoderDecoder

BART = StandardEncoderDecoder("bart", embedding_norm=True, offset=2, start=2).family()
