"""XLM-RoBERTa XL (Goyal et al. 2021): XLM-RoBERTa with norms before attention and feed-forward."""

from __future__ import annotations

from pellucid.model.families.roberta import heads
from pellucid.model.standard_encoder import StandardEncoder, after_padding, bert_names

XLM_ROBERTA_XL = StandardEncoder(
    "xlm_roberta_xl",
    model_type="xlm-roberta-xl",
    names=bert_names("roberta")
    | {
        "attention.norm": "attention.self_attn_layer_norm",
        "feedforward.norm": "LayerNorm",
        "model.norm": "roberta.encoder.LayerNorm",
    },
    heads=heads("roberta"),
    first_position=after_padding,
    embedding_norm=False,
    placement="pre",
    final_norm=True,
    types=1,
    epsilon=1e-5,
).family()
