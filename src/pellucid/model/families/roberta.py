"""RoBERTa (Liu et al. 2019), and the encoders with its structure: CamemBERT (Martin et al. 2020), XLM-RoBERTa (Conneau
et al. 2020), and sentence encoders and rerankers such as BGE-M3, multilingual E5 and BGE rerankers.

RoBERTa is BERT with positions after the padding token, and with other heads.
"""

from __future__ import annotations

from pellucid.model.output_heads import HeadLayer, Heads, TaskHead, choice_head
from pellucid.model.standard_encoder import StandardEncoder, after_padding, bert_names


def heads(base: str) -> Heads:
    """The heads, for a model whose tensors have names with the first part ``base``."""
    labels = HeadLayer("classifier", "labels")
    return {
        "classify": TaskHead(
            (HeadLayer("classifier.dense", activation="tanh"), HeadLayer("classifier.out_proj", "labels")),
            "cls",
        ),
        "tag": TaskHead((labels,)),
        "answer": TaskHead((HeadLayer("qa_outputs", "labels"),)),
        "fill": TaskHead(
            (HeadLayer("lm_head.dense", activation="gelu"), HeadLayer("lm_head.layer_norm", "norm")),
            decoder="lm_head.decoder",
            bias="lm_head.bias",
        ),
        "MultipleChoice": choice_head(HeadLayer(f"{base}.pooler.dense", activation="tanh"), labels),
    }


ROBERTA = StandardEncoder(
    "roberta",
    names=bert_names("roberta"),
    heads=heads("roberta"),
    also=("camembert", "xlm-roberta"),
    first_position=after_padding,
).family()
