"""Phi 1 to 4 (Microsoft 2023; Abdin et al. 2024)."""

from __future__ import annotations

from msgspec.structs import replace

from pellucid.model.config import Config
from pellucid.model.spec import ModelSpec, Norm
from pellucid.model.standard_decoder import GPT_LIKE, StandardDecoder
from pellucid.model.tensor_names import GGUF, TRANSFORMERS

# Phi-1, 1.5 and 2 (Microsoft 2023): parallel attention and feed-forward with one layer norm.

PHI = replace(
    GPT_LIKE,
    name="phi",
    architecture="phi2",
    rotated=0.5,
    tied=False,
    placement="shared",
    head_bias=True,
    head_norm="qk_layernorm",
    keys={"head_dim": "", "norm_eps": "layer_norm_eps", "bias": "", "feedforward_bias": ""},
    names=TRANSFORMERS
    | {
        "model.norm": "model.final_layernorm",
        "attention.output": "self_attn.dense",
        "attention.q_norm": "self_attn.q_layernorm",
        "attention.k_norm": "self_attn.k_layernorm",
        "feedforward.up": "mlp.fc1",
        "feedforward.down": "mlp.fc2",
    },
).family()


# Phi-3 and Phi-4-mini (Abdin et al. 2024): like Llama, with fused QKV and fused gate and up-projections.


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
