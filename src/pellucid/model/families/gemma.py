"""Gemma (Gemma Team 2024): like Llama, with GELU, an embedding scaled by sqrt(D), and norms that multiply by 1 + w."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from pellucid.model.config import Config
from pellucid.model.spec import Activation, ModelSpec
from pellucid.model.standard_decoder import StandardDecoder
from pellucid.model.tensor_names import TRANSFORMERS

ACTIVATIONS: Mapping[str, Activation] = {"gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu_tanh"}
"""Older files write "gelu" for the tanh form."""


def _scaled(config: Config, spec: ModelSpec) -> ModelSpec:
    return replace(spec, embedding=replace(spec.embedding, scale=spec.embedding.width**0.5))


def _from_config(config: Config, spec: ModelSpec) -> ModelSpec:
    config.one_of("hidden_activation", {"gelu_pytorch_tanh": "gelu_tanh"}, "gelu_pytorch_tanh")
    return _scaled(config, spec)


GEMMA = StandardDecoder(
    "gemma",
    tied=True,
    activation="gelu_tanh",
    activations=ACTIVATIONS,
    names=replace(TRANSFORMERS, norm_plus=1.0),
    gguf_change=_scaled,
    config_change=_from_config,
).family()
