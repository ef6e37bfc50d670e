"""The tiny models of tests/goldens/model/tiny, as data: a class of transformers and the options of its configuration.

Two names are the classes of the model and of its configuration; one name stands for ``<name>ForCausalLM`` and
``<name>Config``. New models come last, because the seed of the first ones is their number.
"""

from typing import Any

LLAMA = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}
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
SMALLER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
ROPE3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
ODD = {
    "hidden_size": 96,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "head_dim": 32,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
BY_LAYER = {
    "full_attention": YARN,
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}
FACTORS = {
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.2,
    "residual_multiplier": 0.22,
    "logits_scaling": 4.0,
}
CAPS = {
    "query_pre_attn_scalar": 16,
    "sliding_window": 8,
    "attn_logit_softcapping": 2.0,
    "final_logit_softcapping": 3.0,
    "tie_word_embeddings": True,
}


def without_rms(options: dict[str, Any]) -> dict[str, Any]:
    """Options of a model with layer norms."""
    return {key: value for key, value in options.items() if key != "rms_norm_eps"}


HALF = LLAMA | {
    "head_dim": 32,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
}
LAYER = {
    key: LLAMA[key]
    for key in (
        "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings",
        "bos_token_id", "eos_token_id", "tie_word_embeddings",
    )
}  # fmt: skip
GPT = {
    "vocab_size": 128,
    "n_positions": 640,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_inner": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ODD_GPT = {"n_embd": 96, "n_head": 3, "n_layer": 3}
OPT = {
    "vocab_size": 128,
    "hidden_size": 64,
    "word_embed_proj_dim": 64,
    "num_hidden_layers": 2,
    "ffn_dim": 96,
    "max_position_embeddings": 640,
    "num_attention_heads": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
FALCON = {
    "vocab_size": 128,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
BERT = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "layer_norm_eps": 1e-12,
}
MOE = LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 48}
QWEN_MOE = LLAMA | {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 24}
GLM_MOE = HALF | {
    "n_routed_experts": 6,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
    "routed_scaling_factor": 1.5,
    "num_hidden_layers": 3,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "image_size": 8,
    "patch_size": 2,
}
LONG: dict[str, Any] = {
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0, 1.1, 1.2, 1.3, 1.5, 1.7, 1.9, 2.1],
        "long_factor": [1.0, 1.3, 1.9, 3.0, 4.5, 7.0, 9.0, 12.0],
    }
}
XGLM = {
    "vocab_size": 128,
    "max_position_embeddings": 640,
    "d_model": 64,
    "ffn_dim": 96,
    "num_layers": 2,
    "attention_heads": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 1,
}
MAMBA = {
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_n_groups": 2,
    "mamba_d_state": 16,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
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
        "full_attention": {
            "rope_type": "proportional",
            "partial_rotary_factor": 0.25,
            "rope_theta": 1000000.0,
        },
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
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", LLAMA),
    "llama-tied": (
        "Llama",
        LLAMA
        | SMALLER
        | {
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0},
        },
    ),
    "llama-rope3": ("Llama", LLAMA | SMALLER | {"rope_parameters": ROPE3}),
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
    "bert": ("BertModel:BertConfig", BERT),
    "llama-linear": (
        "Llama",
        LLAMA | SMALLER | {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5}},
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
    "qwen2": ("Qwen2", LLAMA | SMALLER),
    "mistral": ("Mistral", LLAMA | {"sliding_window": 8}),
    "mistral-odd": ("Mistral", LLAMA | ODD | {"sliding_window": None}),
    "qwen3": ("Qwen3", LLAMA),
    "qwen3-odd": ("Qwen3", LLAMA | ODD | {"tie_word_embeddings": True, "attention_bias": True}),
    "seed_oss": ("SeedOss", LLAMA),
    "seed_oss-odd": ("SeedOss", LLAMA | ODD | {"attention_out_bias": True}),
    "granite": ("Granite", LLAMA | FACTORS),
    "granite-odd": ("Granite", LLAMA | ODD | FACTORS | {"rope_parameters": YARN}),
    "smollm3": ("SmolLM3", LLAMA | {"num_hidden_layers": 5, "pad_token_id": 0}),
    "smollm3-odd": (
        "SmolLM3",
        LLAMA | ODD | {"num_hidden_layers": 3, "no_rope_layers": [1, 0, 1], "pad_token_id": 0},
    ),
    "olmo2": ("Olmo2", LLAMA),
    "olmo2-odd": ("Olmo2", LLAMA | ODD),
    "gemma": ("Gemma", LLAMA | {"tie_word_embeddings": True}),
    "gemma-odd": ("Gemma", LLAMA | ODD | {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "gemma2": ("Gemma2", LLAMA | CAPS | {"num_hidden_layers": 3}),
    "gemma2-odd": ("Gemma2", LLAMA | ODD | CAPS | {"query_pre_attn_scalar": 24}),
    "starcoder2": (
        "Starcoder2",
        without_rms(LLAMA) | {"sliding_window": 8, "residual_dropout": 0.0, "embedding_dropout": 0.0},
    ),
    "starcoder2-odd": (
        "Starcoder2",
        without_rms(LLAMA) | ODD | {"use_bias": False, "tie_word_embeddings": True},
    ),
    "nemotron": ("Nemotron", without_rms(HALF) | {"head_dim": 16}),
    "nemotron-odd": ("Nemotron", without_rms(HALF) | ODD | {"attention_bias": True, "mlp_bias": True}),
    "cohere2": (
        "Cohere2",
        without_rms(LLAMA)
        | {"num_hidden_layers": 5, "sliding_window": 8, "tie_word_embeddings": True, "pad_token_id": 0},
    ),
    "cohere2-odd": (
        "Cohere2",
        without_rms(LLAMA)
        | ODD
        | {
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "sliding_window": 5,
            "logit_scale": 0.5,
            "tie_word_embeddings": True,
            "pad_token_id": 0,
        },
    ),
    "glm4": ("Glm4", HALF | {"pad_token_id": 0}),
    "glm4-odd": ("Glm4", HALF | ODD | {"attention_bias": False, "pad_token_id": 0}),
    "phi3": ("Phi3", LLAMA | {"pad_token_id": 0, "original_max_position_embeddings": 256}),
    "phi3-odd": (
        "Phi3",
        LLAMA | ODD | {"pad_token_id": 0, "original_max_position_embeddings": 256, "sliding_window": 8},
    ),
    "olmo3": ("Olmo3", LLAMA | {"num_hidden_layers": 5, "sliding_window": 8, "rope_parameters": BY_LAYER}),
    "olmo3-odd": (
        "Olmo3",
        LLAMA
        | ODD
        | {
            "sliding_window": 8,
            "rope_parameters": BY_LAYER,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        },
    ),
    "phi": ("Phi", LAYER | {"rope_parameters": HALF["rope_parameters"], "intermediate_size": 256}),
    "phi-odd": (
        "Phi",
        LAYER
        | {
            "hidden_size": 96,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "num_hidden_layers": 3,
            "intermediate_size": 80,
            "rope_parameters": HALF["rope_parameters"],
        },
    ),
    "gpt2": ("GPT2LMHeadModel:GPT2Config", GPT),
    "gpt2-odd": (
        "GPT2LMHeadModel:GPT2Config",
        GPT | ODD_GPT | {"n_inner": 80, "scale_attn_by_inverse_layer_idx": True},
    ),
    "gptj": ("GPTJ", GPT | {"rotary_dim": 16, "tie_word_embeddings": False, "n_head": 2}),
    "gptj-odd": ("GPTJ", GPT | ODD_GPT | {"rotary_dim": 16, "tie_word_embeddings": False, "n_inner": 80}),
    "gpt_neox": (
        "GPTNeoX",
        LAYER
        | {
            "intermediate_size": 96,
            "num_attention_heads": 2,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
            },
        },
    ),
    "gpt_neox-odd": (
        "GPTNeoX",
        LAYER
        | {
            "hidden_size": 96,
            "num_attention_heads": 3,
            "num_hidden_layers": 3,
            "intermediate_size": 80,
            "use_parallel_residual": False,
            "attention_bias": False,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 1.0,
            },
        },
    ),
    "opt": ("OPT", OPT),
    "opt-odd": (
        "OPT",
        OPT
        | {
            "hidden_size": 96,
            "word_embed_proj_dim": 96,
            "num_attention_heads": 3,
            "num_hidden_layers": 3,
            "ffn_dim": 80,
            "activation_function": "gelu",
            "tie_word_embeddings": False,
        },
    ),
    "bloom": (
        "Bloom",
        {
            "vocab_size": 128,
            "hidden_size": 64,
            "n_layer": 2,
            "n_head": 4,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
    "bloom-odd": (
        "Bloom",
        {
            "vocab_size": 128,
            "hidden_size": 96,
            "n_layer": 3,
            "n_head": 3,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
    "mpt": ("Mpt", {"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 256, "vocab_size": 128}),
    "mpt-odd": (
        "Mpt",
        {
            "d_model": 96,
            "n_heads": 3,
            "n_layers": 3,
            "max_seq_len": 256,
            "vocab_size": 128,
            "attn_config": {"softmax_scale": 0.3},
        },
    ),
    "openai-gpt": (
        "OpenAIGPTLMHeadModel:OpenAIGPTConfig",
        {k: v for k, v in GPT.items() if k not in ("n_inner", "activation_function")},
    ),
    "openai-gpt-odd": (
        "OpenAIGPTLMHeadModel:OpenAIGPTConfig",
        {k: v for k, v in (GPT | ODD_GPT).items() if k not in ("n_inner", "activation_function")},
    ),
    "falcon": ("Falcon", FALCON),
    "falcon-odd": (
        "Falcon",
        FALCON
        | {
            "hidden_size": 96,
            "num_attention_heads": 6,
            "num_kv_heads": 2,
            "new_decoder_architecture": True,
            "num_hidden_layers": 3,
        },
    ),
    "falcon-one": (
        "Falcon",
        FALCON | {"num_kv_heads": 2, "new_decoder_architecture": True, "num_ln_in_parallel_attn": 1},
    ),
    "falcon-many": ("Falcon", FALCON | {"multi_query": False, "parallel_attn": False, "bias": True}),
    "mixtral": ("Mixtral", MOE | {"sliding_window": 8}),
    "mixtral-odd": ("Mixtral", MOE | ODD | {"num_local_experts": 5, "num_experts_per_tok": 3}),
    "qwen2_moe": ("Qwen2Moe", QWEN_MOE | {"shared_expert_intermediate_size": 40}),
    "qwen2_moe-odd": (
        "Qwen2Moe",
        QWEN_MOE
        | ODD
        | {
            "shared_expert_intermediate_size": 72,
            "norm_topk_prob": True,
            "decoder_sparse_step": 2,
            "qkv_bias": False,
        },
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
        | {
            "n_routed_experts": 12,
            "n_group": 4,
            "topk_group": 2,
            "n_shared_experts": 2,
            "first_k_dense_replace": 2,
        },
    ),
    "granitemoe": ("GraniteMoe", MOE | FACTORS),
    "granitemoe-odd": (
        "GraniteMoe",
        MOE | ODD | FACTORS | {"num_local_experts": 5, "num_experts_per_tok": 3},
    ),
    "granitemoeshared": ("GraniteMoeShared", MOE | FACTORS | {"shared_intermediate_size": 40}),
    "gemma3-vision": (
        "Gemma3ForConditionalGeneration:Gemma3Config",
        {"text_config": GEMMA, "vision_config": VISION, "mm_tokens_per_image": 4},
    ),
    "mistral-vision": (
        "Mistral3ForConditionalGeneration:Mistral3Config",
        {
            "text_config": LLAMA | {"model_type": "mistral", "sliding_window": None},
            "vision_config": VISION | {"model_type": "pixtral", "head_dim": 16},
        },
    ),
    "llama-narrow": (
        "Llama",
        LLAMA
        | {
            "hidden_size": 72,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "head_dim": 24,
            "intermediate_size": 40,
        },
    ),
    "gpt2-narrow": ("GPT2LMHeadModel:GPT2Config", GPT | {"n_embd": 40, "n_head": 2, "n_inner": 50}),
    "phi3-long": ("Phi3", LLAMA | LONG | {"original_max_position_embeddings": 32, "pad_token_id": 0}),
    "phi3-short": (
        "Phi3",
        HALF
        | {
            **LONG,
            "rope_parameters": {**LONG["rope_parameters"], "partial_rotary_factor": 0.5},
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "original_max_position_embeddings": 64,
            "max_position_embeddings": 64,
            "pad_token_id": 0,
        },
    ),
    "llama-dynamic": (
        "Llama",
        LLAMA | {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}},
    ),
    "qwen3-vision": (
        "Qwen3VLForConditionalGeneration:Qwen3VLConfig",
        {
            "text_config": LLAMA
            | {
                "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]}
            },
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 16,
                "depth": 1,
                "num_heads": 1,
                "patch_size": 2,
                "out_hidden_size": 64,
                "num_position_embeddings": 16,
                "deepstack_visual_indexes": [0],
            },
        },
    ),
    "xglm": ("XGLM", XGLM),
    "xglm-odd": (
        "XGLM",
        XGLM
        | {"d_model": 72, "attention_heads": 3, "num_layers": 3, "ffn_dim": 50, "scale_embedding": False},
    ),
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
    "ministral3": (
        "Ministral3",
        LLAMA
        | {
            "rope_parameters": YARN
            | {
                "original_max_position_embeddings": 8,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "llama_4_scaling_beta": 0.3,
            }
        },
    ),
    "ministral3-odd": (
        "Ministral3",
        LLAMA
        | ODD
        | {
            "rope_parameters": YARN
            | {"factor": 8.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1}
        },
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
            "layer_types": [
                *["sliding_attention", "sliding_attention", "full_attention"] * 2,
                "full_attention",
            ],
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
    "qwen2-window": (
        "Qwen2",
        LLAMA
        | {"num_hidden_layers": 4, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
    ),
    "smollm3-window": (
        "SmolLM3",
        LLAMA | {"num_hidden_layers": 4, "use_sliding_window": True, "sliding_window": 8, "pad_token_id": 0},
    ),
    "mpt-clip": (
        "Mpt",
        {
            "vocab_size": 128,
            "d_model": 96,
            "n_heads": 6,
            "n_layers": 2,
            "max_seq_len": 256,
            "attn_config": {"clip_qkv": 1.0, "alibi_bias_max": 16},
        },
    ),
    "phi-norms": ("Phi", without_rms(LLAMA) | {"qk_layernorm": True, "partial_rotary_factor": 0.5}),
    "opt-post": ("OPT", OPT | {"do_layer_norm_before": False, "word_embed_proj_dim": 48}),
    "opt-narrow": (
        "OPT",
        OPT
        | {
            "hidden_size": 96,
            "word_embed_proj_dim": 40,
            "num_attention_heads": 3,
            "num_hidden_layers": 3,
            "layer_norm_elementwise_affine": False,
            "enable_bias": False,
            "tie_word_embeddings": False,
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
    "falcon-alibi": (
        "Falcon",
        FALCON | {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True},
    ),
    "falcon-alibi-odd": (
        "Falcon",
        FALCON
        | {
            "alibi": True,
            "hidden_size": 96,
            "num_attention_heads": 8,
            "num_kv_heads": 2,
            "num_hidden_layers": 3,
            "new_decoder_architecture": True,
        },
    ),
}
