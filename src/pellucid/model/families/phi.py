"""Phi-1, 1.5 and 2 (Microsoft 2023): parallel attention and feed-forward with one layer norm."""

from __future__ import annotations

from pellucid.model.spec import Norm
from pellucid.model.standard_decoder import StandardDecoder
from pellucid.model.tensor_names import TRANSFORMERS

PHI = StandardDecoder(
    "phi",
    architecture="phi2",
    rotated=0.5,
    bias=True,
    output_bias=True,
    activation="gelu_tanh",
    gated=False,
    feedforward_bias=True,
    norm=Norm("layer", 1e-5),
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
