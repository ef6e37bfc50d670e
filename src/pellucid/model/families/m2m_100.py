"""M2M-100 (Fan et al. 2020) and NLLB (NLLB Team 2022): translation between many languages."""

from __future__ import annotations

from pellucid.model.encoder_decoder import StandardEncoderDecoder

M2M_100 = StandardEncoderDecoder(
    "m2m_100",
    placement="pre",
    final_norm=True,
    positions="sinusoidal",
    offset=2,
    activation="relu",
    scale_embedding=True,
    start=2,
).family()
