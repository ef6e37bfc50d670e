"""Blenderbot (Roller et al. 2020): a dialogue model with norms before each part."""

from __future__ import annotations

from pellucid.model.encoder_decoder import StandardEncoderDecoder

BLENDERBOT = StandardEncoderDecoder("blenderbot", placement="pre", final_norm=True, start=1).family()
