"""BERT (Devlin et al. 2019), also as a sentence encoder (Reimers and Gurevych 2019) and a cross-encoder.

BERT has post-norms, bidirectional attention, learned positions and type embeddings. GGUF files of the architecture
"bert" also hold models of RoBERTa, XLM-R and DistilBERT.
"""

from __future__ import annotations

from pellucid.model.output_heads import HeadLayer, Heads, TaskHead, choice_head
from pellucid.model.outputs import Labels
from pellucid.model.standard_encoder import StandardEncoder, bert_names
from pellucid.model.tensor_names import GGUF

POOLER, LABELS = HeadLayer("bert.pooler.dense", activation="tanh"), HeadLayer("classifier", "labels")
HEADS: Heads = {
    "classify": TaskHead((POOLER, LABELS), "cls"),
    "tag": TaskHead((LABELS,)),
    "answer": TaskHead((HeadLayer("qa_outputs", "labels"),)),
    "fill": TaskHead(
        (
            HeadLayer("cls.predictions.transform.dense", activation="hidden"),
            HeadLayer("cls.predictions.transform.LayerNorm", "norm"),
        ),
        decoder="cls.predictions.decoder",
        bias="cls.predictions.bias",
    ),
    "NextSentencePrediction": TaskHead(
        (POOLER, HeadLayer("cls.seq_relationship", "labels")),
        "cls",
        labels=Labels(("next", "random")),
        task="classify",
    ),
    "MultipleChoice": choice_head(POOLER, LABELS),
}

BERT = StandardEncoder(
    "bert",
    names=bert_names("bert"),
    heads=HEADS,
    gguf_names=GGUF
    | {
        "model.embed.types": "token_types",
        "attention.norm": "attn_output_norm",
        "feedforward.norm": "layer_output_norm",
    },
    unused=(
        r"cls\.seq_relationship\..+",
    ),  # in models of BertForPreTraining, beside the masked language model
).family()
