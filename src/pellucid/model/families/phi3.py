"""Phi-3 and Phi-4-mini (Abdin et al. 2024): like Llama, with fused QKV and fused gate and up-projections."""

from __future__ import annotations

from pellucid.model.config import Config
from pellucid.model.spec import ModelSpec, Norm
from pellucid.model.standard_decoder import StandardDecoder
from pellucid.model.tensor_names import GGUF, TRANSFORMERS


def _window(config: Config, spec: ModelSpec) -> ModelSpec:
    return spec.with_attention(window=config.optional_count("attention.sliding_window"))


PHI3 = StandardDecoder(
    "phi3",
    partial=True,
    norm=Norm("rms", 1e-5),
    keys={"window": "sliding_window"},
    gguf_names=GGUF | {"feedforward.gate": "ffn_up"},
    names=TRANSFORMERS | {"attention.q,k,v": "self_attn.qkv_proj", "feedforward.gate,up": "mlp.gate_up_proj"},
    gguf_change=_window,
).family()
