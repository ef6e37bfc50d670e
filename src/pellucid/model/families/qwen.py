"""Qwen 1.5 to 3.5 (Qwen Team 2024, 2025, 2026), dense or with experts."""

from __future__ import annotations

from msgspec.structs import replace

from pellucid.model.config import Config
from pellucid.model.hybrid import MAX_TAPS, layer_types, mixed
from pellucid.model.metadata import except_every, switched_windows
from pellucid.model.spec import DeltaNet, ModelSpec, Norm
from pellucid.model.standard_decoder import StandardDecoder
from pellucid.model.standard_mixture import StandardMixture
from pellucid.model.tensor_names import GGUF, TRANSFORMERS

# Qwen 2 and 2.5 (Qwen Team 2024): like Llama, with biases on queries, keys and values.

WITHOUT_WINDOW = 28  # default number of first layers without a window


def windows(config: Config, spec: ModelSpec) -> ModelSpec:
    """Set the windows of the last layers, if the file switches windows on."""
    first = config.optional_count("max_window_layers") if config.has("max_window_layers") else WITHOUT_WINDOW
    return switched_windows(config, spec, lambda layer: layer >= first)


QWEN2 = StandardDecoder(
    "qwen2", also=("qwen2_vl_text", "qwen2_5_vl_text"), gguf_also=("qwen2vl",), bias=True, config_change=windows
).family()


# Qwen 1.5 and 2 with experts (Qwen Team 2024): Qwen 2 with a mixture and a gated shared expert.

QWEN2_MOE = StandardDecoder(
    "qwen2_moe",
    architecture="qwen2moe",
    bias=True,
    mixture=StandardMixture(
        shared_gate=True, sparse_step=True, keys={"shared_width": "shared_expert_intermediate_size"}
    ),
    keys={"bias": "qkv_bias", "output_bias": ""},
    config_change=windows,
    names=TRANSFORMERS
    | {
        "feedforward.shared.gate": "mlp.shared_expert.gate_proj",
        "feedforward.shared.up": "mlp.shared_expert.up_proj",
        "feedforward.shared.down": "mlp.shared_expert.down_proj",
        "feedforward.shared_gate": "mlp.shared_expert_gate",
    },
).family()


# Qwen 3, dense (Qwen Team 2025): like Llama, with an RMS norm of the queries and keys of each head.

QWEN3 = StandardDecoder(
    "qwen3", also=("qwen3_vl_text",), gguf_also=("qwen3vl",), head_norm=True, config_change=windows
).family()


# Qwen 3 with experts (Qwen Team 2025): Qwen 3 with a mixture. GGUF files have normalized expert weights by default.

QWEN3_MOE = StandardDecoder(
    "qwen3_moe",
    architecture="qwen3moe",
    head_norm=True,
    mixture=StandardMixture(gguf_normalize=True, sparse_step=True),
    config_change=lambda config, spec: switched_windows(config, spec, lambda _: True),
).family()


# Qwen 3 Next and Qwen 3.5 (Qwen Team 2025, 2026), dense or with experts.
#
# Three of four layers are Gated DeltaNets. Every fourth layer is attention with an output gate.

INTERVAL = 4  # default: every fourth layer has attention


def _mixed(config: Config, spec: ModelSpec, net: DeltaNet, stated: list[bool] | None) -> ModelSpec:
    """Replace attention by ``net`` in the ``stated`` layers, by default in all layers except every fourth layer."""
    by_interval = except_every(config.count("full_attention_interval", INTERVAL), len(spec.blocks))
    return mixed(spec.with_attention(gate=True), net, stated or by_interval)


def _from_config(config: Config, spec: ModelSpec) -> ModelSpec:
    net = DeltaNet(
        heads=config.count("linear_num_value_heads"),
        key_heads=config.divisor("linear_num_key_heads", "linear_num_value_heads"),
        key_dim=config.count("linear_key_head_dim"),
        value_dim=config.count("linear_value_head_dim"),
        taps=config.count("linear_conv_kernel_dim", limit=MAX_TAPS),
        norm=Norm("rms", spec.blocks[0].norm.eps),
    )
    return _mixed(config, spec, net, layer_types(config, "layer_types", len(spec.blocks)))


def _from_gguf(config: Config, spec: ModelSpec, tiled: bool) -> ModelSpec:
    heads = config.divisor("ssm.time_step_rank", "ssm.inner_size")
    net = DeltaNet(
        heads=heads,
        key_heads=config.divisor("ssm.group_count", "ssm.time_step_rank"),
        key_dim=config.count("ssm.state_size"),
        value_dim=config.count("ssm.inner_size") // heads,
        taps=config.count("ssm.conv_kernel", limit=MAX_TAPS),
        norm=Norm("rms", spec.blocks[0].norm.eps),
        tiled=tiled,
    )
    layers, mtp_layers = len(spec.blocks), config.optional_count("nextn_predict_layers")
    stated = config.flags("attention.recurrent_layers", layers + mtp_layers)
    return _mixed(config, spec, net, stated[:layers] if stated else None)


_NAMES = replace(
    TRANSFORMERS
    | {
        "attention.gate": "self_attn.q_proj",
        "recurrent.norm": "input_layernorm",
        "recurrent.q_conv,k_conv,v_conv": "linear_attn.conv1d",
        "recurrent.rate.weight": "linear_attn.A_log",
        "recurrent.rate.bias": "linear_attn.dt_bias",
        "recurrent.head_norm": "linear_attn.norm",
        "recurrent.output": "linear_attn.out_proj",
        "feedforward.shared.gate": "mlp.shared_expert.gate_proj",
        "feedforward.shared.up": "mlp.shared_expert.up_proj",
        "feedforward.shared.down": "mlp.shared_expert.down_proj",
        "feedforward.shared_gate": "mlp.shared_expert_gate",
    },
    norm_plus=1.0,
    plain_norms=frozenset({"recurrent.head_norm"}),
    by_group=frozenset({"self_attn.q_proj", "linear_attn.in_proj_qkvz", "linear_attn.in_proj_ba"}),
    log_rates=True,
)
_NAMES_NEXT = _NAMES | {
    "recurrent.q,k,v,gate": "linear_attn.in_proj_qkvz",
    "recurrent.beta,step": "linear_attn.in_proj_ba",
}
_NAMES_35 = _NAMES | {
    "recurrent.q,k,v": "linear_attn.in_proj_qkv",
    "recurrent.gate": "linear_attn.in_proj_z",
    "recurrent.beta": "linear_attn.in_proj_b",
    "recurrent.step": "linear_attn.in_proj_a",
}
_GGUF = replace(
    GGUF
    | {
        "attention.gate": "attn_q",
        "recurrent.norm": "attn_norm",
        "recurrent.q,k,v": "attn_qkv",
        "recurrent.gate": "attn_gate",
        "recurrent.beta,step": "ssm_ba",
        "recurrent.q_conv,k_conv,v_conv": "ssm_conv1d",
        "recurrent.rate.weight": "ssm_a",
        "recurrent.rate.bias": "ssm_dt.bias",
        "recurrent.head_norm": "ssm_norm",
        "recurrent.output": "ssm_out",
        "feedforward.norm": "post_attention_norm",
    },
    by_group=frozenset({"attn_q", "ssm_ba"}),
)

_DIMENSIONS = {
    "state_heads": "linear_num_value_heads",
    "state_value": "linear_value_head_dim",
    "state_groups": "linear_num_key_heads",
    "state_dim": "linear_key_head_dim",
    "taps": "linear_conv_kernel_dim",
    "pattern": "layer_types",
}

QWEN3_NEXT_DECODER = StandardDecoder(
    "qwen3_next",
    architecture="qwen3next",
    rotated=0.25,
    head_norm=True,
    mixture=StandardMixture(
        normalize=True, shared_gate=True, sparse_step=True, keys={"shared_width": "shared_expert_intermediate_size"}
    ),
    mtp_layers="num_nextn_predict_layers",
    pattern=("linear_attention",) * 3 + ("full_attention",),
    keys={"feedforward_bias": "", **_DIMENSIONS},
    skipped=(r"mtp\..*",),
    names=_NAMES_NEXT,
    gguf_names=_GGUF,
    config_change=_from_config,
    gguf_change=lambda config, spec: _from_gguf(config, spec, tiled=False),
)
QWEN3_NEXT = QWEN3_NEXT_DECODER.family()
_QWEN3_5 = replace(
    QWEN3_NEXT_DECODER,
    name="qwen3_5",
    model_type="qwen3_5_text",
    architecture="qwen35",
    gguf_also=("clef",),  # a decision model (``decision_heads.py``)
    mixture=None,
    names=_NAMES_35,
    # In the order of llama.cpp, the value heads of a key head are not adjacent.
    gguf_names=_GGUF | {"recurrent.beta": "ssm_beta", "recurrent.step": "ssm_alpha"},
    gguf_change=lambda config, spec: _from_gguf(config, spec, tiled=True),
)
QWEN3_5 = _QWEN3_5.family()
QWEN3_5_MOE = replace(
    _QWEN3_5,
    name="qwen3_5_moe",
    model_type="qwen3_5_moe_text",
    architecture="qwen35moe",
    gguf_also=(),
    mixture=StandardMixture(
        normalize=True, shared_gate=True, keys={"shared_width": "shared_expert_intermediate_size", "normalize": ""}
    ),
    keys={"feedforward_bias": "", "feed_forward": "moe_intermediate_size", **_DIMENSIONS},
).family()
