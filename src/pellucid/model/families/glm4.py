"""GLM-4 (GLM Team 2024, the version of 0414): sandwich norms, half of each head rotated, fused gates."""

from __future__ import annotations

from pellucid.model.spec import Norm
from pellucid.model.standard_decoder import StandardDecoder
from pellucid.model.tensor_names import GGUF, TRANSFORMERS

GLM4 = StandardDecoder(
    "glm4",
    gguf_pairing="interleaved",
    pairing="interleaved",
    rotated=0.5,
    norm=Norm("rms", 1.5625e-7),
    bias=True,
    placement="sandwich",
    keys={"output_bias": ""},
    gguf_names=GGUF | {"feedforward.gate": "ffn_up"},
    names=TRANSFORMERS
    | {
        "attention.post_norm": "post_self_attn_layernorm",
        "feedforward.post_norm": "post_mlp_layernorm",
        "feedforward.gate,up": "mlp.gate_up_proj",
    },
).family()
