"""Tiny models of DeBERTa V1, V2 and V3, as in ``tiny_encoders.py``."""

from typing import Any

DEBERTA: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "relative_attention": True,
    "pos_att_type": "c2p|p2c",
    "position_biased_input": False,
}
ODD = {"hidden_size": 72, "num_attention_heads": 3, "num_hidden_layers": 3, "intermediate_size": 80}
V3 = DEBERTA | {
    "pos_att_type": "p2c|c2p",
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "position_buckets": 16,
    "max_relative_positions": -1,
}
OWN = {"share_att_key": False, "norm_rel_ebd": "none"}

MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "deberta": ("DebertaModel", "DebertaConfig", DEBERTA),
    "deberta-odd": (
        "DebertaModel",
        "DebertaConfig",
        DEBERTA
        | ODD
        | {"pos_att_type": ["c2p"], "max_relative_positions": 24, "position_biased_input": True, "type_vocab_size": 2},
    ),
    "deberta-classify": ("DebertaForSequenceClassification", "DebertaConfig", DEBERTA | {"num_labels": 3}),
    "deberta-fill": ("DebertaForMaskedLM", "DebertaConfig", DEBERTA | {"pos_att_type": ["p2c"]}),
    "deberta-v2": ("DebertaV2Model", "DebertaV2Config", V3),
    "deberta-v2-odd": (
        "DebertaV2Model",
        "DebertaV2Config",
        V3 | ODD | OWN | {"position_buckets": -1, "position_biased_input": True, "type_vocab_size": 2},
    ),
    "deberta-v2-own": ("DebertaV2Model", "DebertaV2Config", V3 | OWN | {"max_relative_positions": 40}),
    "deberta-v2-key": ("DebertaV2Model", "DebertaV2Config", V3 | {"pos_att_type": ["c2p"]}),
    "deberta-v2-query": ("DebertaV2Model", "DebertaV2Config", V3 | OWN | {"pos_att_type": ["p2c"]}),
    "deberta-v2-plain": ("DebertaV2Model", "DebertaV2Config", V3 | {"relative_attention": False}),
    "deberta-v2-conv": (
        "DebertaV2Model",
        "DebertaV2Config",
        V3 | {"conv_kernel_size": 3, "conv_act": "gelu", "embedding_size": 48, "type_vocab_size": 2},
    ),
    "deberta-v2-classify": (
        "DebertaV2ForSequenceClassification",
        "DebertaV2Config",
        V3 | {"num_labels": 3, "pooler_hidden_act": "gelu"},
    ),
    "deberta-v2-tag": ("DebertaV2ForTokenClassification", "DebertaV2Config", V3 | {"num_labels": 5}),
    "deberta-v2-answer": ("DebertaV2ForQuestionAnswering", "DebertaV2Config", V3),
    "deberta-v2-fill": ("DebertaV2ForMaskedLM", "DebertaV2Config", V3 | {"legacy": False}),
    "deberta-v2-legacy": ("DebertaV2ForMaskedLM", "DebertaV2Config", V3 | {"embedding_size": 48}),
}
