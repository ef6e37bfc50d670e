"""Gemma (Gemma Team 2024): like Llama, with GELU, an embedding scaled by sqrt(D), and norms that multiply by 1 + w."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from pellucid.model.config import Config
from pellucid.model.spec import Activation, ModelSpec
from pellucid.model.standard_decoder import StandardDecoder
from pellucid.model.tensor_names import TRANSFORMERS

TANH: Mapping[str, Activation] = {"gelu_pytorch_tanh": "gelu_tanh"}
ACTIVATIONS: Mapping[str, Activation] = {**TANH, "gelu": "gelu_tanh"}
"""Older files write "gelu" for the tanh form."""


def check_activation(config: Config) -> None:
    """Refuse activation functions other than GELU (tanh) in ``hidden_activation``, a key of Gemma's config.json."""
    config.choice("hidden_activation", TANH, "gelu_pytorch_tanh")


def scaled(config: Config, spec: ModelSpec) -> ModelSpec:
    """Scale the embedding by sqrt(D)."""
    return replace(spec, embedding=replace(spec.embedding, scale=spec.embedding.width**0.5))


def capped(
    config: Config, spec: ModelSpec, scale: float, scores_cap: float = 0.0, logits_cap: float = 0.0
) -> ModelSpec:
    """Set the scale of scores, and the soft-caps of scores and logits, with defaults for files without these keys."""
    assert spec.head is not None
    scores = config.optional_number("attn_logit_softcapping", scores_cap)
    head = replace(spec.head, softcap=config.optional_number("final_logit_softcapping", logits_cap))
    return replace(scaled(config, spec).with_attention(softcap=scores, scale=scale), head=head)


def gguf_scale(spec: ModelSpec, layers_of_27b: int) -> float:
    """The scale of scores: (D / H)^-0.5 in the 27B models, as in their reports, otherwise K^-0.5. GGUF has no key."""
    attention = spec.attention
    wide = len(spec.blocks) == layers_of_27b
    return (spec.embedding.width / attention.heads) ** -0.5 if wide else attention.scale


def _from_config(config: Config, spec: ModelSpec) -> ModelSpec:
    check_activation(config)
    return scaled(config, spec)


GEMMA = StandardDecoder(
    "gemma",
    tied=True,
    activation="gelu_tanh",
    activations=ACTIVATIONS,
    names=replace(TRANSFORMERS, norm_plus=1.0),
    gguf_change=scaled,
    config_change=_from_config,
).family()
