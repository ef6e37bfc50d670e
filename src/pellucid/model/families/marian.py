"""Marian (Junczys-Dowmunt et al. 2018), the OPUS-MT translators: the transformer of Vaswani et al. (2017)."""

from __future__ import annotations

from pellucid.model.encoder_decoder import StandardEncoderDecoder

MARIAN = StandardEncoderDecoder("marian", positions="sinusoidal", endpoint=False, start=58_100).family()
