"""Tiny models of older families, with layer norms and learned positions or ALiBi, and an encoder."""

from tiny_options import HALF, LLAMA, Models, without_rms

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
MODELS: Models = {
    "bert": ("BertModel:BertConfig", BERT),
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
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
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
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0},
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
        {"vocab_size": 128, "hidden_size": 64, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2},
    ),
    "bloom-odd": (
        "Bloom",
        {"vocab_size": 128, "hidden_size": 96, "n_layer": 3, "n_head": 3, "bos_token_id": 1, "eos_token_id": 2},
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
    "gpt2-narrow": ("GPT2LMHeadModel:GPT2Config", GPT | {"n_embd": 40, "n_head": 2, "n_inner": 50}),
    "xglm": ("XGLM", XGLM),
    "xglm-odd": (
        "XGLM",
        XGLM | {"d_model": 72, "attention_heads": 3, "num_layers": 3, "ffn_dim": 50, "scale_embedding": False},
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
    "falcon-alibi": ("Falcon", FALCON | {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True}),
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
