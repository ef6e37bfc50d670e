"""Gemma 2 (Gemma Team 2024): sandwich norms, soft-caps, and a sliding window in every second layer."""

from __future__ import annotations

from msgspec.structs import replace

from pellucid.model.common_metadata import slide, sliding_layers
from pellucid.model.config import Config
from pellucid.model.families.gemma import ACTIVATIONS
from pellucid.model.spec import ModelSpec
from pellucid.model.standard_decoder import StandardDecoder
from pellucid.model.tensor_names import TRANSFORMERS_SANDWICH

SCORES_CAP, LOGITS_CAP = 50.0, 30.0  # defaults of config.json


def _capped(
    spec: ModelSpec, scores: float, logits: float, scale: float, sliding: list[bool], window: int
) -> ModelSpec:
    assert spec.head is not None
    return replace(
        slide(spec.with_attention(softcap=scores, scale=scale), sliding, window),
        embedding=replace(spec.embedding, scale=spec.embedding.width**0.5),
        head=replace(spec.head, softcap=logits),
    )


def _from_gguf(config: Config, spec: ModelSpec) -> ModelSpec:
    attention, layers = spec.attention, len(spec.blocks)
    # 27B scales by D / H instead of K, according to its report. Its GGUF does not state it.
    scale = (spec.embedding.width / attention.heads) ** -0.5 if layers == 46 else attention.scale
    return _capped(
        spec,
        config.cap("attn_logit_softcapping"),
        config.cap("final_logit_softcapping"),
        scale,
        [i % 2 == 0 for i in range(layers)],
        config.count("attention.sliding_window"),
    )


def _from_config(config: Config, spec: ModelSpec) -> ModelSpec:
    layers = len(spec.blocks)
    config.one_of("hidden_activation", {"gelu_pytorch_tanh": "gelu_tanh"}, "gelu_pytorch_tanh")
    return _capped(
        spec,
        config.cap("attn_logit_softcapping", SCORES_CAP),
        config.cap("final_logit_softcapping", LOGITS_CAP),
        config.number("query_pre_attn_scalar", 256) ** -0.5,
        sliding_layers(config, [i % 2 == 0 for i in range(layers)]),
        config.count("sliding_window"),
    )


GEMMA2 = StandardDecoder(
    "gemma2",
    tied=True,
    activation="gelu_tanh",
    activations=ACTIVATIONS,
    placement="sandwich",
    names=replace(TRANSFORMERS_SANDWICH, norm_plus=1.0),
    gguf_change=_from_gguf,
    config_change=_from_config,
).family()
