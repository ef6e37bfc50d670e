"""Tiny models of the Gemma families."""

from tiny_options import LLAMA, ODD, VISION, Models

GEMMA = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "max_position_embeddings": 256,
    "sliding_window": 8,
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    },
}
CAPS = {
    "query_pre_attn_scalar": 16,
    "sliding_window": 8,
    "attn_logit_softcapping": 2.0,
    "final_logit_softcapping": 3.0,
    "tie_word_embeddings": True,
}
GEMMA4 = {
    "vocab_size": 128,
    "vocab_size_per_layer_input": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "global_head_dim": 32,
    "hidden_size_per_layer_input": 24,
    "max_position_embeddings": 256,
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_kv_shared_layers": 2,
    "use_double_wide_mlp": True,
    "final_logit_softcapping": 5.0,
    "rope_parameters": {
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1000000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    },
}
GEMMA3N = {
    "vocab_size": 128,
    "vocab_size_per_layer_input": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "hidden_size_per_layer_input": 24,
    "max_position_embeddings": 256,
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
    "num_kv_shared_layers": 2,
    "final_logit_softcapping": 30.0,
    "altup_num_inputs": 4,
    "laurel_rank": 12,
    "activation_sparsity_pattern": [0.9, 0.9, 0.0, 0.0, 0.0, 0.0],
}
MODELS: Models = {
    "gemma3": ("Gemma3ForCausalLM:Gemma3TextConfig", GEMMA),
    "gemma3-scalar": (
        "Gemma3ForCausalLM:Gemma3TextConfig",
        GEMMA
        | {
            "num_hidden_layers": 4,
            "layer_types": ["full_attention", "sliding_attention"] * 2,
            "num_attention_heads": 2,
            "head_dim": 32,
            "query_pre_attn_scalar": 24,
        },
    ),
    "gemma3-softcap": (
        "Gemma3ForCausalLM:Gemma3TextConfig",
        GEMMA
        | {
            "num_hidden_layers": 3,
            "layer_types": ["sliding_attention"] * 2 + ["full_attention"],
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma3-linear": (
        "Gemma3ForCausalLM:Gemma3TextConfig",
        GEMMA
        | {
            "num_hidden_layers": 3,
            "layer_types": ["sliding_attention"] * 2 + ["full_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0},
                "sliding_attention": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
            },
        },
    ),
    "gemma": ("Gemma", LLAMA | {"tie_word_embeddings": True}),
    "gemma-odd": ("Gemma", LLAMA | ODD | {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "gemma2": ("Gemma2", LLAMA | CAPS | {"num_hidden_layers": 3}),
    "gemma2-odd": ("Gemma2", LLAMA | ODD | CAPS | {"query_pre_attn_scalar": 24}),
    "gemma3-vision": (
        "Gemma3ForConditionalGeneration:Gemma3Config",
        {"text_config": GEMMA, "vision_config": VISION, "mm_tokens_per_image": 4},
    ),
    "gemma4": ("Gemma4ForCausalLM:Gemma4TextConfig", GEMMA4),
    "gemma4-odd": (
        "Gemma4ForCausalLM:Gemma4TextConfig",
        GEMMA4
        | {
            "hidden_size": 72,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "num_global_key_value_heads": 2,
            "head_dim": 24,
            "global_head_dim": 40,
            "hidden_size_per_layer_input": 0,
            "attention_k_eq_v": True,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "num_kv_shared_layers": 0,
            "use_double_wide_mlp": False,
            "final_logit_softcapping": None,
        },
    ),
    "gemma4_moe": (
        "Gemma4ForCausalLM:Gemma4TextConfig",
        GEMMA4
        | {
            "enable_moe_block": True,
            "num_experts": 8,
            "top_k_experts": 2,
            "moe_intermediate_size": 24,
            "hidden_size_per_layer_input": 0,
            "num_kv_shared_layers": 0,
            "use_double_wide_mlp": False,
        },
    ),
    "gemma4_moe-odd": (
        "Gemma4ForCausalLM:Gemma4TextConfig",
        GEMMA4
        | {
            "hidden_size": 72,
            "num_hidden_layers": 7,
            "layer_types": [*["sliding_attention", "sliding_attention", "full_attention"] * 2, "full_attention"],
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "num_global_key_value_heads": 1,
            "attention_k_eq_v": True,
            "enable_moe_block": True,
            "num_experts": 5,
            "top_k_experts": 3,
            "moe_intermediate_size": 40,
        },
    ),
    "gemma3n": ("Gemma3nForCausalLM:Gemma3nTextConfig", GEMMA3N),
    "gemma3n-odd": (
        "Gemma3nForCausalLM:Gemma3nTextConfig",
        GEMMA3N
        | {
            "hidden_size": 72,
            "intermediate_size": [40, 72, 40],
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "head_dim": 24,
            "hidden_size_per_layer_input": 20,
            "vocab_size_per_layer_input": 120,
            "final_logit_softcapping": 5.0,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "num_kv_shared_layers": 0,
            "altup_num_inputs": 3,
            "altup_active_idx": 1,
            "altup_correct_scale": False,
            "laurel_rank": 10,
            "activation_sparsity_pattern": [0.0, 0.8, 0.5],
        },
    ),
}
