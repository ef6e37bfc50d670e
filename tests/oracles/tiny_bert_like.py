"""Tiny encoders with the structure of BERT, as data for ``tiny_encoders.py``."""

from typing import Any

BERT: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
ODD = BERT | {"hidden_size": 96, "num_attention_heads": 3, "num_hidden_layers": 3, "intermediate_size": 160}
NARROW, NARROW_ODD = BERT | {"embedding_size": 32}, ODD | {"embedding_size": 48}
DISTILLED: dict[str, Any] = {
    "vocab_size": 128,
    "dim": 64,
    "hidden_dim": 96,
    "n_layers": 2,
    "n_heads": 4,
    "max_position_embeddings": 64,
}
HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "classify": ("ForSequenceClassification", {"num_labels": 3}),
    "tag": ("ForTokenClassification", {"num_labels": 5}),
    "answer": ("ForQuestionAnswering", {}),
    "fill": ("ForMaskedLM", {}),
    "choice": ("ForMultipleChoice", {}),
}
"""Class and options by the variant of a name."""


def of_family(
    family: str, kind: str, plain: dict[str, Any], odd: dict[str, Any], *heads: str
) -> dict[str, tuple[str, str, dict[str, Any]]]:
    """The bodies of two shapes, and heads on the plain body."""
    bodies = {family: plain, f"{family}-odd": odd}
    models = {name: (f"{kind}Model", f"{kind}Config", options) for name, options in bodies.items()}
    for head in heads:
        ending, options = HEADS[head]
        models[f"{family}-{head}"] = (f"{kind}{ending}", f"{kind}Config", plain | options)
    return models


MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert-odd": ("BertModel", "BertConfig", ODD | {"hidden_act": "gelu_new"}),
    "bert-classify": ("BertForSequenceClassification", "BertConfig", BERT | {"num_labels": 3}),
    "bert-rank": ("BertForSequenceClassification", "BertConfig", BERT | {"num_labels": 1}),
    "bert-tag": ("BertForTokenClassification", "BertConfig", BERT | {"num_labels": 5}),
    "bert-answer": ("BertForQuestionAnswering", "BertConfig", BERT),
    "bert-fill": ("BertForMaskedLM", "BertConfig", BERT | {"hidden_act": "relu"}),
    "bert-next": ("BertForNextSentencePrediction", "BertConfig", BERT),
    "bert-choice": ("BertForMultipleChoice", "BertConfig", BERT),
    **of_family("roberta", "Roberta", BERT, ODD | {"type_vocab_size": 1, "pad_token_id": 4}, *HEADS),
    "roberta-camembert": ("CamembertModel", "CamembertConfig", BERT),
    "roberta-rank": ("XLMRobertaForSequenceClassification", "XLMRobertaConfig", BERT | {"num_labels": 1}),
    **of_family("xlm_roberta_xl", "XLMRobertaXL", BERT, ODD, "classify", "fill"),
    **of_family(
        "distilbert", "DistilBert", DISTILLED, DISTILLED | {"dim": 96, "n_heads": 3, "activation": "relu"}, *HEADS
    ),
    **of_family(
        "albert",
        "Albert",
        NARROW | {"num_hidden_layers": 3},
        NARROW_ODD | {"num_hidden_layers": 4, "num_hidden_groups": 2, "inner_group_num": 2, "hidden_act": "gelu"},
        *HEADS,
    ),
    "albert-wide": ("AlbertForMaskedLM", "AlbertConfig", BERT | {"embedding_size": 64}),
    "albert-order": ("AlbertForPreTraining", "AlbertConfig", NARROW),
    **of_family("electra", "Electra", NARROW, ODD | {"embedding_size": 96}, "classify", "tag", "answer", "fill"),
    "electra-replaced": ("ElectraForPreTraining", "ElectraConfig", NARROW | {"hidden_act": "relu"}),
    **of_family("mpnet", "MPNet", BERT, ODD, *HEADS),
}
