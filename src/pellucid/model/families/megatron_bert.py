"""Megatron-BERT (Shoeybi et al. 2019): BERT with norms before attention and feed-forward, and after the last block."""

from __future__ import annotations

from pellucid.model.families.bert import HEADS
from pellucid.model.standard_encoder import StandardEncoder, bert_names

MEGATRON_BERT = StandardEncoder(
    "megatron_bert",
    model_type="megatron-bert",
    names=bert_names("bert")
    | {"attention.norm": "attention.ln", "feedforward.norm": "ln", "model.norm": "bert.encoder.ln"},
    heads=HEADS,
    embedding_norm=False,
    placement="pre",
    final_norm=True,
    # in models for pretraining, beside the masked language model
    unused=(r"cls\.seq_relationship\..+",),
).family()
