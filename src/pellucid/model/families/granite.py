"""Granite 3 (IBM 2024): like Llama, with multipliers of the embedding, the scores, the residuals and the logits."""

from __future__ import annotations

from msgspec.structs import replace

from pellucid.model.config import Config
from pellucid.model.spec import ModelSpec
from pellucid.model.standard_decoder import StandardDecoder

KEYS = ("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling")
GGUF_KEYS = ("embedding_scale", "attention.scale", "residual_scale", "logit_scale")


def _scaled(config: Config, spec: ModelSpec, keys: tuple[str, ...], usual_scores: float) -> ModelSpec:
    """Apply the multipliers of the embedding, the scores, the residuals and the logits. ``keys`` has this order."""
    defaults = (1.0, usual_scores, 1.0, 1.0)
    embedding, scores, residual, logits = map(config.number, keys, defaults)
    assert spec.head is not None
    return replace(
        spec.with_attention(scale=scores).with_blocks(residual_scale=residual),
        embedding=replace(spec.embedding, scale=embedding),
        head=replace(spec.head, scale=1 / logits),
    )


def scaled_config(config: Config, spec: ModelSpec) -> ModelSpec:
    """Apply Granite's multipliers from config.json."""
    return _scaled(config, spec, KEYS, 1.0)


def scaled_gguf(config: Config, spec: ModelSpec) -> ModelSpec:
    """Apply Granite's multipliers from GGUF."""
    return _scaled(config, spec, GGUF_KEYS, spec.attention.scale)


def scaled_rotary_gguf(config: Config, spec: ModelSpec) -> ModelSpec:
    """Apply Granite's multipliers from GGUF.

    The value false of ``rope.scaling.finetuned`` is refused, because llama.cpp reads it as "no rotary positions".
    """
    config.refuse("rope.scaling.finetuned", True)
    return scaled_gguf(config, spec)


GRANITE = StandardDecoder(
    "granite",
    gguf_pairing="interleaved",
    gguf_change=scaled_rotary_gguf,
    config_change=scaled_config,
).family()
