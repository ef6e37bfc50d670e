"""Granite 3 (IBM 2024): like Llama, with multipliers of the embedding, the scores, the residuals and the logits."""

from __future__ import annotations

from msgspec.structs import replace

from pellucid.model.config import Config
from pellucid.model.spec import ModelSpec
from pellucid.model.standard_decoder import StandardDecoder


def _scaled(spec: ModelSpec, embedding: float, scores: float, residual: float, logits: float) -> ModelSpec:
    assert spec.head is not None
    return replace(
        spec.with_attention(scale=scores).with_blocks(residual_scale=residual),
        embedding=replace(spec.embedding, scale=embedding),
        head=replace(spec.head, scale=1 / logits),
    )


def scaled_config(config: Config, spec: ModelSpec) -> ModelSpec:
    """Apply Granite's multipliers from config.json."""
    return _scaled(
        spec,
        config.number("embedding_multiplier", 1.0),
        config.number("attention_multiplier", 1.0),
        config.number("residual_multiplier", 1.0),
        config.number("logits_scaling", 1.0),
    )


def scaled_gguf(config: Config, spec: ModelSpec) -> ModelSpec:
    """Apply Granite's multipliers from GGUF.

    ``rope.scaling.finetuned`` = false is refused: in these files, llama.cpp reads it as "no rotary positions".
    """
    config.refuse("rope.scaling.finetuned", True)
    return scaled_gguf_factors(config, spec)


def scaled_gguf_factors(config: Config, spec: ModelSpec) -> ModelSpec:
    """Apply Granite's multipliers from GGUF, without the check of ``rope.scaling.finetuned``."""
    return _scaled(
        spec,
        config.number("embedding_scale", 1.0),
        config.number("attention.scale", spec.attention.scale),
        config.number("residual_scale", 1.0),
        config.number("logit_scale", 1.0),
    )


GRANITE = StandardDecoder(
    "granite",
    gguf_pairing="interleaved",
    gguf_change=scaled_gguf,
    config_change=scaled_config,
).family()
