"""Tiny models with mixtures of experts, like Mixtral, DeepSeek and Llama 4."""

from tiny_options import FACTORS, HALF, LLAMA, ODD, YARN, Models

MOE = LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 48}
QWEN_MOE = LLAMA | {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 24}
GLM_MOE = HALF | {
    "n_routed_experts": 6,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
    "routed_scaling_factor": 1.5,
    "num_hidden_layers": 3,
}
LLAMA4 = LLAMA | {"intermediate_size": 48, "intermediate_size_mlp": 72, "num_local_experts": 4}
LATENT = {key: value for key, value in GLM_MOE.items() if key != "head_dim"} | {
    "num_key_value_heads": 4,
    "rope_parameters": LLAMA["rope_parameters"],
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 48,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
}
LATENT_ODD = LATENT | {
    "hidden_size": 72,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "num_hidden_layers": 4,
    "q_lora_rank": None,
    "kv_lora_rank": 40,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 8,
    "v_head_dim": 24,
}
MODELS: Models = {
    "mixtral": ("Mixtral", MOE | {"sliding_window": 8}),
    "mixtral-odd": ("Mixtral", MOE | ODD | {"num_local_experts": 5, "num_experts_per_tok": 3}),
    "qwen2_moe": ("Qwen2Moe", QWEN_MOE | {"shared_expert_intermediate_size": 40}),
    "qwen2_moe-odd": (
        "Qwen2Moe",
        QWEN_MOE
        | ODD
        | {"shared_expert_intermediate_size": 72, "norm_topk_prob": True, "decoder_sparse_step": 2, "qkv_bias": False},
    ),
    "qwen3_moe": ("Qwen3Moe", QWEN_MOE | {"norm_topk_prob": True}),
    "qwen3_moe-odd": (
        "Qwen3Moe",
        QWEN_MOE | ODD | {"num_experts": 5, "num_experts_per_tok": 5, "mlp_only_layers": [1]},
    ),
    "olmoe": ("Olmoe", MOE | {"num_experts": 8, "pad_token_id": 0}),
    "olmoe-odd": ("Olmoe", MOE | ODD | {"num_experts": 6, "pad_token_id": 0, "norm_topk_prob": True}),
    "gpt_oss": (
        "GptOss",
        MOE | {"sliding_window": 8, "num_hidden_layers": 3, "rope_parameters": YARN | {"truncate": False}},
    ),
    "gpt_oss-odd": (
        "GptOss",
        MOE
        | ODD
        | {
            "sliding_window": 5,
            "swiglu_limit": 0.7,
            "num_local_experts": 5,
            "num_experts_per_tok": 3,
            "layer_types": ["full_attention", "full_attention", "sliding_attention"],
        },
    ),
    "glm4_moe": ("Glm4Moe", GLM_MOE | {"use_qk_norm": True, "attention_bias": True}),
    "glm4_moe-odd": (
        "Glm4Moe",
        GLM_MOE
        | ODD
        | {"n_routed_experts": 12, "n_group": 4, "topk_group": 2, "n_shared_experts": 2, "first_k_dense_replace": 2},
    ),
    "granitemoe": ("GraniteMoe", MOE | FACTORS),
    "granitemoe-odd": ("GraniteMoe", MOE | ODD | FACTORS | {"num_local_experts": 5, "num_experts_per_tok": 3}),
    "granitemoeshared": ("GraniteMoeShared", MOE | FACTORS | {"shared_intermediate_size": 40}),
    "deepseek_v3": ("DeepseekV3", LATENT),
    "deepseek_v3-odd": (
        "DeepseekV3",
        LATENT_ODD
        | {
            "n_routed_experts": 12,
            "n_group": 4,
            "topk_group": 2,
            "n_shared_experts": 2,
            "rope_parameters": YARN | {"mscale": 0.8, "mscale_all_dim": 0.8},
        },
    ),
    "deepseek_v2": ("DeepseekV2", LATENT | {"topk_method": "group_limited_greedy"}),
    "deepseek_v2-odd": (
        "DeepseekV2",
        LATENT_ODD | {"topk_method": "greedy", "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0},
    ),
    "llama4": (
        "Llama4ForCausalLM:Llama4TextConfig",
        LLAMA4 | {"num_hidden_layers": 5, "attention_chunk_size": 12, "floor_scale": 8, "use_qk_norm": True},
    ),
    "llama4-odd": (
        "Llama4ForCausalLM:Llama4TextConfig",
        LLAMA4
        | ODD
        | {
            "attention_chunk_size": 7,
            "interleave_moe_layer_step": 2,
            "num_local_experts": 5,
            "num_experts_per_tok": 3,
            "use_qk_norm": False,
            "no_rope_layers": [1, 0, 1],
            "floor_scale": 5,
        },
    ),
    "llama4-dense": (
        "Llama4ForCausalLM:Llama4TextConfig",
        LLAMA4
        | {
            "num_hidden_layers": 4,
            "attention_chunk_size": 16,
            "moe_layers": [],
            "attn_temperature_tuning": False,
            "tie_word_embeddings": True,
        },
    ),
    "gpt_oss-mxfp4": (
        "GptOss",
        MOE
        | {
            "sliding_window": 8,
            "num_hidden_layers": 3,
            "intermediate_size": 96,
            "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]},
        },
    ),
}
