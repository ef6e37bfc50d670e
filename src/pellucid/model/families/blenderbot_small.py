"""Blenderbot Small (Roller et al. 2020): norms after each part; its decoder adds positions after the norm."""

from __future__ import annotations

from pellucid.model.encoder_decoder import StandardEncoderDecoder

BLENDERBOT_SMALL = StandardEncoderDecoder(
    "blenderbot_small", model_type="blenderbot-small", embedding_norm=True, norm_first=True, start=1
).family()
