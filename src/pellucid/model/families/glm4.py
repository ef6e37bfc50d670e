"""GLM-4 to 4.6 (GLM Team 2024, 2025), dense or with experts."""

from __future__ import annotations

from pellucid.model.config import Config
from pellucid.model.spec import ModelSpec, Norm
from pellucid.model.standard_decoder import StandardDecoder
from pellucid.model.standard_mixture import StandardMixture
from pellucid.model.tensor_names import GGUF, TRANSFORMERS

# GLM-4 (GLM Team 2024, the version of 0414): sandwich norms, half of each head rotated, fused gates.

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


# GLM-4.5 and 4.6 (GLM Team 2025): half of each head rotated, sigmoid scores with a correction, a shared expert.


def _from_config(config: Config, spec: ModelSpec) -> ModelSpec:
    config.choice("topk_method", {"noaux_tc": True}, "noaux_tc")
    config.choice("scoring_func", {"sigmoid": True}, "sigmoid")
    return spec


GLM4_MOE = StandardDecoder(
    "glm4_moe",
    architecture="glm4moe",
    rotated=0.5,
    norm=Norm("rms", 1e-5),
    head_norm="use_qk_norm",
    mixture=StandardMixture(
        score="sigmoid",
        normalize=True,
        correction=True,
        group_best=2,
        keys={
            "shared": "n_shared_experts",
            "scale": "routed_scaling_factor",
            "groups": "n_group",
            "kept": "topk_group",
            "dense": "first_k_dense_replace",
        },
    ),
    keys={"output_bias": ""},
    gguf_names=GGUF | {"feedforward.norm": "post_attention_norm"},
    mtp_layers="num_nextn_predict_layers",
    config_change=_from_config,
).family()
