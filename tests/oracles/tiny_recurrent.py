"""Tiny models with recurrent blocks: DeltaNet, Mamba, short convolutions."""

from tiny_options import FACTORS, LLAMA, ODD, Models

MAMBA = {
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_n_groups": 2,
    "mamba_d_state": 16,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
}
LFM = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "block_multiple_of": 16,
    "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}
NEMOTRON_H = {
    **{
        key: value
        for key, value in LLAMA.items()
        if key not in ("rms_norm_eps", "num_hidden_layers", "rope_parameters")
    },
    "layer_norm_epsilon": 1e-5,
    "layers_block_type": ["mamba", "mlp", "attention", "mamba"],
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "n_groups": 2,
    "ssm_state_size": 16,
}
DELTA = LLAMA | {
    "num_hidden_layers": 4,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
}
DELTA_ODD = DELTA | {
    "hidden_size": 72,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 24,
    "num_hidden_layers": 3,
    "layer_types": ["full_attention", "linear_attention", "full_attention"],
    "linear_conv_kernel_dim": 3,
    "linear_key_head_dim": 24,
    "linear_value_head_dim": 40,
    "linear_num_key_heads": 3,
    "linear_num_value_heads": 3,
}
DELTA_ALONE = {key: value for key, value in DELTA.items() if key != "intermediate_size"}
DELTA_MOE = {
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 40,
}
MODELS: Models = {
    "qwen3_next": ("Qwen3Next", DELTA | DELTA_MOE),
    "qwen3_next-odd": (
        "Qwen3Next",
        DELTA_ODD | DELTA_MOE | {"num_experts": 5, "norm_topk_prob": False, "mlp_only_layers": [1]},
    ),
    "qwen3_5": ("Qwen3_5ForCausalLM:Qwen3_5TextConfig", DELTA),
    "qwen3_5-odd": ("Qwen3_5ForCausalLM:Qwen3_5TextConfig", DELTA_ODD | {"linear_num_key_heads": 1}),
    "qwen3_5_moe": ("Qwen3_5MoeForCausalLM:Qwen3_5MoeTextConfig", DELTA_ALONE | DELTA_MOE),
    "qwen3_5_moe-odd": (
        "Qwen3_5MoeForCausalLM:Qwen3_5MoeTextConfig",
        {key: value for key, value in DELTA_ODD.items() if key != "intermediate_size"} | DELTA_MOE,
    ),
    "granitemoehybrid": (
        "GraniteMoeHybrid",
        LLAMA
        | MAMBA
        | FACTORS
        | {
            "num_hidden_layers": 3,
            "layer_types": ["mamba", "attention", "mamba"],
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "intermediate_size": 24,
            "shared_intermediate_size": 40,
        },
    ),
    "granitemoehybrid-odd": (
        "GraniteMoeHybrid",
        ODD
        | LLAMA
        | FACTORS
        | {
            "num_hidden_layers": 4,
            "layer_types": ["attention", "mamba", "mamba", "attention"],
            "position_embedding_type": "rope",
            "num_local_experts": 0,
            "shared_intermediate_size": 72,
            "mamba_n_heads": 3,
            "mamba_d_head": 64,
            "hidden_size": 96,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "head_dim": 32,
            "mamba_n_groups": 3,
            "mamba_d_state": 24,
            "mamba_d_conv": 3,
            "mamba_expand": 2,
        },
    ),
    "falcon_h1": ("FalconH1", LLAMA | MAMBA | {"mamba_d_ssm": 128, "mamba_rms_norm": False}),
    "falcon_h1-odd": (
        "FalconH1",
        LLAMA
        | MAMBA
        | {
            "hidden_size": 72,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "head_dim": 24,
            "num_hidden_layers": 3,
            "mamba_n_heads": 6,
            "mamba_d_head": 24,
            "mamba_d_ssm": 144,
            "mamba_d_state": 40,
            "mamba_rms_norm": True,
            "mamba_conv_bias": False,
            "projectors_bias": True,
            "mlp_bias": True,
            "embedding_multiplier": 3.0,
            "lm_head_multiplier": 0.25,
            "mlp_multipliers": [0.8, 0.7],
            "key_multiplier": 0.4,
            "attention_in_multiplier": 1.3,
            "attention_out_multiplier": 0.6,
            "ssm_in_multiplier": 1.2,
            "ssm_out_multiplier": 0.5,
            "ssm_multipliers": [0.9, 0.8, 1.1, 0.7, 0.6],
        },
    ),
    "lfm2": ("Lfm2", LFM | {"layer_types": ["conv", "full_attention", "conv"]}),
    "lfm2-odd": (
        "Lfm2",
        LFM
        | {
            "hidden_size": 72,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "num_hidden_layers": 4,
            "layer_types": ["conv", "conv", "full_attention", "conv"],
            "conv_L_cache": 4,
            "conv_bias": True,
            "block_auto_adjust_ff_dim": False,
            "intermediate_size": 50,
            "tie_word_embeddings": True,
        },
    ),
    "lfm2_moe": (
        "Lfm2Moe",
        LFM
        | {
            "tie_word_embeddings": True,
            "layer_types": ["conv", "full_attention", "conv"],
            "num_dense_layers": 1,
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
        },
    ),
    "lfm2_moe-odd": (
        "Lfm2Moe",
        LFM
        | {
            "hidden_size": 96,
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "num_hidden_layers": 4,
            "layer_types": ["full_attention", "conv", "conv", "full_attention"],
            "num_dense_layers": 2,
            "tie_word_embeddings": True,
            "num_experts": 5,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 40,
            "use_expert_bias": False,
            "norm_topk_prob": False,
            "routed_scaling_factor": 1.5,
        },
    ),
    "nemotron_h": ("NemotronH", NEMOTRON_H),
    "nemotron_h-odd": (
        "NemotronH",
        NEMOTRON_H
        | {
            "hidden_size": 72,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "head_dim": 24,
            "layers_block_type": ["mamba", "moe", "attention", "mlp", "mamba", "moe"],
            "mamba_num_heads": 3,
            "mamba_head_dim": 24,
            "n_groups": 3,
            "ssm_state_size": 40,
            "conv_kernel": 3,
            "use_conv_bias": False,
            "use_bias": True,
            "n_routed_experts": 6,
            "num_experts_per_tok": 2,
            "n_group": 2,
            "topk_group": 1,
            "moe_intermediate_size": 40,
            "moe_shared_expert_intermediate_size": 56,
            "routed_scaling_factor": 1.5,
        },
    ),
}
