"""BART and the encoder-decoders with its structure: Blenderbot, Marian, mBART, Pegasus, M2M-100."""

from __future__ import annotations

from pellucid.model.encoder_decoder import StandardEncoderDecoder

# BART (Lewis et al. 2019): norms after each part and after the embedding, learned positions.

BART = StandardEncoderDecoder("bart", embedding_norm=True, offset=2, start=2).family()


# Blenderbot (Roller et al. 2020): a dialogue model with norms before each part.

BLENDERBOT = StandardEncoderDecoder("blenderbot", placement="pre", final_norm=True, start=1).family()


# Blenderbot Small (Roller et al. 2020): norms after each part; its decoder adds positions after the norm.

BLENDERBOT_SMALL = StandardEncoderDecoder(
    "blenderbot_small", model_type="blenderbot-small", embedding_norm=True, norm_first=True, start=1
).family()


# Marian (Junczys-Dowmunt et al. 2018), the OPUS-MT translators: the transformer of Vaswani et al. (2017).

MARIAN = StandardEncoderDecoder("marian", positions="sinusoidal", endpoint=False, start=58_100).family()


# mBART (Liu et al. 2020) and mBART-50: BART with norms before each part and after the last block.

MBART = StandardEncoderDecoder("mbart", placement="pre", final_norm=True, embedding_norm=True, offset=2).family()


# Pegasus (Zhang et al. 2020): norms before each part, sinusoidal positions.

PEGASUS = StandardEncoderDecoder(
    "pegasus", placement="pre", final_norm=True, positions="sinusoidal", endpoint=False, start=0
).family()


# M2M-100 (Fan et al. 2020) and NLLB (NLLB Team 2022): translation between many languages.

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
