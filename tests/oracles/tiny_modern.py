"""The tiny encoders with rotary positions and ALiBi of tests/goldens/model/encoders, as data (tiny_encoders.py)."""

from typing import Any

BODY: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
ODD = BODY | {"hidden_size": 96, "num_attention_heads": 3, "num_hidden_layers": 3, "intermediate_size": 160}
IDS = {"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
MODERN = BODY | IDS | {"local_attention": 16}
"""Windows of 8 tokens on each side in layers 1 and 2."""

MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "modernbert": ("ModernBertModel", "ModernBertConfig", MODERN),
    "modernbert-odd": (
        "ModernBertModel",
        "ModernBertConfig",
        ODD
        | IDS
        | {
            "local_attention": 10,
            "hidden_activation": "silu",
            "norm_bias": True,
            "attention_bias": True,
            "mlp_bias": True,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
            },
        },
    ),
    "modernbert-classify": (
        "ModernBertForSequenceClassification",
        "ModernBertConfig",
        MODERN | {"num_labels": 3, "classifier_pooling": "mean", "classifier_bias": True},
    ),
    "modernbert-rank": ("ModernBertForSequenceClassification", "ModernBertConfig", MODERN | {"num_labels": 1}),
    "modernbert-tag": ("ModernBertForTokenClassification", "ModernBertConfig", MODERN | {"num_labels": 5}),
    "modernbert-answer": ("ModernBertForQuestionAnswering", "ModernBertConfig", MODERN),
    "modernbert-fill": ("ModernBertForMaskedLM", "ModernBertConfig", MODERN),
}
