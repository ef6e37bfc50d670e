"""Tiny models like Llama: RMS norms, gated feed-forwards, rotary positions; some with an image part."""

from typing import Any

from tiny_options import FACTORS, HALF, LLAMA, ODD, VISION, YARN, Models, without_rms

SMALLER = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
ROPE3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
BY_LAYER = {"full_attention": YARN, "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}
LONG: dict[str, Any] = {
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0, 1.1, 1.2, 1.3, 1.5, 1.7, 1.9, 2.1],
        "long_factor": [1.0, 1.3, 1.9, 3.0, 4.5, 7.0, 9.0, 12.0],
    }
}
MODELS: Models = {
    "llama": ("Llama", LLAMA),
    "llama-tied": (
        "Llama",
        LLAMA
        | SMALLER
        | {"tie_word_embeddings": True, "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0}},
    ),
    "llama-rope3": ("Llama", LLAMA | SMALLER | {"rope_parameters": ROPE3}),
    "llama-linear": (
        "Llama",
        LLAMA | SMALLER | {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5}},
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
    "smollm3-odd": ("SmolLM3", LLAMA | ODD | {"num_hidden_layers": 3, "no_rope_layers": [1, 0, 1], "pad_token_id": 0}),
    "olmo2": ("Olmo2", LLAMA),
    "olmo2-odd": ("Olmo2", LLAMA | ODD),
    "starcoder2": (
        "Starcoder2",
        without_rms(LLAMA) | {"sliding_window": 8, "residual_dropout": 0.0, "embedding_dropout": 0.0},
    ),
    "starcoder2-odd": ("Starcoder2", without_rms(LLAMA) | ODD | {"use_bias": False, "tie_word_embeddings": True}),
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
            | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]}},
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
    "ministral3": (
        "Ministral3",
        LLAMA
        | {
            "rope_parameters": YARN
            | {"original_max_position_embeddings": 8, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.3}
        },
    ),
    "ministral3-odd": (
        "Ministral3",
        LLAMA
        | ODD
        | {
            "rope_parameters": YARN | {"factor": 8.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1}
        },
    ),
    "qwen2-window": (
        "Qwen2",
        LLAMA | {"num_hidden_layers": 4, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
    ),
    "smollm3-window": (
        "SmolLM3",
        LLAMA | {"num_hidden_layers": 4, "use_sliding_window": True, "sliding_window": 8, "pad_token_id": 0},
    ),
}
