"""The tiny encoders of tests/goldens/model/encoders, as data.

Each has the class of the model, the class of its configuration, and options of the configuration. A name is the family,
or the family and a variant. Each family has two shapes, and each head of a family once.
"""

from typing import Any

import tiny_deberta

BERT: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
ODD = BERT | {"hidden_size": 96, "num_attention_heads": 3, "num_hidden_layers": 3, "intermediate_size": 160}

MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert-odd": ("BertModel", "BertConfig", ODD | {"hidden_act": "gelu_new"}),
    "bert-classify": ("BertForSequenceClassification", "BertConfig", BERT | {"num_labels": 3}),
    "bert-rank": ("BertForSequenceClassification", "BertConfig", BERT | {"num_labels": 1}),
    "bert-tag": ("BertForTokenClassification", "BertConfig", BERT | {"num_labels": 5}),
    "bert-answer": ("BertForQuestionAnswering", "BertConfig", BERT),
    "bert-fill": ("BertForMaskedLM", "BertConfig", BERT | {"hidden_act": "relu"}),
    **tiny_deberta.MODELS,
}
