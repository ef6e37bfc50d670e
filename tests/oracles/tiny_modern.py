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

EURO = BODY | {"num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2, "mask_token_id": 4}

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
    "nomic_bert": ("NomicBertModel", "NomicBertConfig", BODY),
    "nomic_bert-odd": (
        "NomicBertModel",
        "NomicBertConfig",
        ODD | {"hidden_act": "gelu", "type_vocab_size": 1, "rope_parameters": {"rope_theta": 100.0}},
    ),
    "nomic_bert-classify": ("NomicBertForSequenceClassification", "NomicBertConfig", BODY | {"num_labels": 3}),
    "nomic_bert-tag": ("NomicBertForTokenClassification", "NomicBertConfig", BODY | {"num_labels": 5}),
    "nomic_bert-fill": ("NomicBertForMaskedLM", "NomicBertConfig", BODY),
    "jina_embeddings_v3": ("JinaEmbeddingsV3Model", "JinaEmbeddingsV3Config", BODY),
    "jina_embeddings_v3-odd": (
        "JinaEmbeddingsV3Model",
        "JinaEmbeddingsV3Config",
        ODD | {"type_vocab_size": 2, "hidden_act": "gelu_new", "rope_parameters": {"rope_theta": 100.0}},
    ),
    "jina_embeddings_v3-classify": (
        "JinaEmbeddingsV3ForSequenceClassification",
        "JinaEmbeddingsV3Config",
        BODY | {"num_labels": 3},
    ),
    "jina_embeddings_v3-tag": (
        "JinaEmbeddingsV3ForTokenClassification",
        "JinaEmbeddingsV3Config",
        BODY | {"num_labels": 5},
    ),
    "jina_embeddings_v3-answer": ("JinaEmbeddingsV3ForQuestionAnswering", "JinaEmbeddingsV3Config", BODY),
    "jina_embeddings_v3-fill": ("JinaEmbeddingsV3ForMaskedLM", "JinaEmbeddingsV3Config", BODY),
    "ernie": ("ErnieModel", "ErnieConfig", BODY | {"use_task_id": True}),
    "ernie-odd": ("ErnieModel", "ErnieConfig", ODD | {"hidden_act": "relu"}),
    "ernie-classify": ("ErnieForSequenceClassification", "ErnieConfig", BODY | {"num_labels": 3}),
    "ernie-fill": ("ErnieForMaskedLM", "ErnieConfig", BODY | {"use_task_id": True}),
    "megatron_bert": ("MegatronBertModel", "MegatronBertConfig", BODY),
    "megatron_bert-odd": ("MegatronBertModel", "MegatronBertConfig", ODD | {"hidden_act": "gelu_new"}),
    "megatron_bert-classify": ("MegatronBertForSequenceClassification", "MegatronBertConfig", BODY | {"num_labels": 3}),
    "megatron_bert-fill": ("MegatronBertForMaskedLM", "MegatronBertConfig", BODY),
    "roformer": ("RoFormerModel", "RoFormerConfig", BODY),
    "roformer-odd": ("RoFormerModel", "RoFormerConfig", ODD | {"embedding_size": 32}),
    "roformer-classify": (
        "RoFormerForSequenceClassification",
        "RoFormerConfig",
        BODY | {"num_labels": 3, "hidden_act": "relu"},
    ),
    "roformer-tag": ("RoFormerForTokenClassification", "RoFormerConfig", BODY | {"num_labels": 5}),
    "roformer-fill": ("RoFormerForMaskedLM", "RoFormerConfig", BODY | {"embedding_size": 32}),
    "gte": ("GteModel", "GteConfig", BODY),
    "gte-odd": (
        "GteModel",
        "GteConfig",
        ODD | {"type_vocab_size": 0, "hidden_act": "silu", "rope_parameters": {"rope_theta": 100.0}},
    ),
    "gte-rank": ("GteForSequenceClassification", "GteConfig", BODY | {"num_labels": 1}),
    "gte-tag": ("GteForTokenClassification", "GteConfig", BODY | {"num_labels": 5}),
    "gte-fill": ("GteForMaskedLM", "GteConfig", BODY),
    "eurobert": ("EuroBertModel", "EuroBertConfig", EURO),
    "eurobert-odd": (
        "EuroBertModel",
        "EuroBertConfig",
        ODD
        | {
            "num_key_value_heads": 1,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "attention_bias": True,
            "mlp_bias": True,
            "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0},
        },
    ),
    "eurobert-classify": ("EuroBertForSequenceClassification", "EuroBertConfig", EURO | {"num_labels": 3}),
    "eurobert-mean": (
        "EuroBertForSequenceClassification",
        "EuroBertConfig",
        EURO | {"num_labels": 2, "classifier_pooling": "mean"},
    ),
    "eurobert-rank": (
        "EuroBertForSequenceClassification",
        "EuroBertConfig",
        EURO | {"num_labels": 1, "classifier_pooling": "bos"},
    ),
    "eurobert-tag": ("EuroBertForTokenClassification", "EuroBertConfig", EURO | {"num_labels": 5}),
    "eurobert-fill": ("EuroBertForMaskedLM", "EuroBertConfig", EURO),
}
