"""Gemma 1, 2 and 3, text (Gemma Team 2024, 2025)."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from pellucid.model.config import Config
from pellucid.model.metadata import SlidingWindows
from pellucid.model.spec import Activation, Attention, ModelSpec
from pellucid.model.standard_decoder import StandardDecoder
from pellucid.model.tensor_names import TRANSFORMERS, TRANSFORMERS_SANDWICH

# Gemma (Gemma Team 2024): like Llama, with GELU, an embedding scaled by sqrt(D), and norms that multiply by 1 + w.

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


# Gemma 2 (Gemma Team 2024): sandwich norms, soft-caps, and a sliding window in every second layer.


def _from_gguf(config: Config, spec: ModelSpec) -> ModelSpec:
    return capped(config, spec, gguf_scale(spec, layers_of_27b=46))


def _gemma2_from_config(config: Config, spec: ModelSpec) -> ModelSpec:
    check_activation(config)
    scale = config.number("query_pre_attn_scalar", 256) ** -0.5
    return capped(config, spec, scale, scores_cap=50.0, logits_cap=30.0)


DECODER = StandardDecoder(
    "gemma2",
    tied=True,
    activation="gelu_tanh",
    activations=ACTIVATIONS,
    placement="sandwich",
    windows=SlidingWindows(period=2),
    names=replace(TRANSFORMERS_SANDWICH, norm_plus=1.0),
    gguf_change=_from_gguf,
    config_change=_gemma2_from_config,
)
GEMMA2 = DECODER.family()


# Gemma 3, text (Gemma Team 2025): sandwich norms, query and key norms, five sliding layers per full layer.
#
# Sliding layers have the rotary base 10,000, full layers have the base in the file. The embedding is scaled by sqrt(D).
# Norms multiply by 1 + w: GGUF files store 1 + w, safetensors store w.


def _scaled_context(_: int, attention: Attention) -> Attention:
    """Remove the trained context of linear scaling, because the context in GGUF is already the scaled context."""
    rotary = attention.rotary
    if rotary is None or rotary.scaling is None or rotary.scaling.kind != "linear":
        return attention
    return replace(attention, rotary=replace(rotary, scaling=replace(rotary.scaling, trained_context=0)))


def _gemma3_from_gguf(config: Config, spec: ModelSpec) -> ModelSpec:
    return capped(config, spec.change_attention(_scaled_context), gguf_scale(spec, layers_of_27b=62))


def _gemma3_from_config(config: Config, spec: ModelSpec) -> ModelSpec:
    check_activation(config)
    return capped(config, spec, config.number("query_pre_attn_scalar", 256) ** -0.5)


GEMMA3 = StandardDecoder(
    "gemma3",
    model_type="gemma3_text",
    gguf_also=("gemma-embedding",),
    base=1_000_000.0,
    head_norm=True,
    windows=SlidingWindows(
        period=6,
        period_key="sliding_window_pattern",
        own_positions=True,
        base=10_000.0,
        base_key="rope_local_base_freq",
    ),
    activation="gelu_tanh",
    activations=TANH,
    placement="sandwich",
    tied=True,
    keys={"feedforward_bias": ""},
    # Defaults of transformers, which config.json of the 4B model omits.
    defaults={"heads": 8, "kv_heads": 4, "head_dim": 256, "context": 131_072, "vocabulary": 262_208},
    gguf_aliases={"rope.freq_base_swa": "rope.local.freq_base", "rope.freq_base": "rope.global.freq_base"},
    names=replace(TRANSFORMERS_SANDWICH, norm_plus=1.0),
    gguf_change=_gemma3_from_gguf,
    config_change=_gemma3_from_config,
).family()
