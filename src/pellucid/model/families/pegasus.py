"""Pegasus (Zhang et al. 2020): norms before each part, sinusoidal positions."""

from __future__ import annotations

from pellucid.model.encoder_decoder import StandardEncoderDecoder

PEGASUS = StandardEncoderDecoder(
    "pegasus",
    placement="pre",
    final_norm=True,
    positions="sinusoidal",
    endpoint=False,
    start=0,
).family()
