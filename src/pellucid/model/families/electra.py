"""ELECTRA (Clark et al. 2020): BERT that is trained to find the tokens of a text that a generator has replaced.

The generator is a masked language model. Small models have a narrow embedding.
"""

from __future__ import annotations

from pellucid.model.output_heads import HeadLayer, Heads, TaskHead
from pellucid.model.outputs import Labels
from pellucid.model.standard_encoder import StandardEncoder, bert_names

HEADS: Heads = {
    "classify": TaskHead(
        (HeadLayer("classifier.dense", activation="gelu"), HeadLayer("classifier.out_proj", "labels")), "cls"
    ),
    "tag": TaskHead((HeadLayer("classifier", "labels"),)),
    "answer": TaskHead((HeadLayer("qa_outputs", "labels"),)),
    "fill": TaskHead(
        (
            HeadLayer("generator_predictions.dense", activation="gelu"),
            HeadLayer("generator_predictions.LayerNorm", "norm"),
        ),
        decoder="generator_lm_head",
        bias="generator_lm_head.bias",
    ),
    "PreTraining": TaskHead(
        (
            HeadLayer("discriminator_predictions.dense", activation="hidden"),
            HeadLayer("discriminator_predictions.dense_prediction", "labels"),
        ),
        labels=Labels(("replaced",), "sigmoid"),
        task="tag",
    ),
}

ELECTRA = StandardEncoder(
    "electra",
    names=bert_names("electra") | {"model.embed.widen": "electra.embeddings_project"},
    heads=HEADS,
    narrow_layers=("generator_predictions.dense",),
    keys={"narrow": "embedding_size"},
).family()
