"""DistilBERT (Sanh et al. 2019): BERT without token types, trained to give BERT's outputs with half of the layers."""

from __future__ import annotations

from pellucid.model.output_heads import HeadLayer, Heads, TaskHead, choice_head
from pellucid.model.standard_encoder import StandardEncoder
from pellucid.model.tensor_names import TensorNames

NAMES = TensorNames(
    {
        "model.embed": "distilbert.embeddings.word_embeddings",
        "model.embed.norm": "distilbert.embeddings.LayerNorm",
        "model.position": "distilbert.embeddings.position_embeddings",
        "attention.q": "attention.q_lin",
        "attention.k": "attention.k_lin",
        "attention.v": "attention.v_lin",
        "attention.output": "attention.out_lin",
        "attention.norm": "sa_layer_norm",
        "feedforward.up": "ffn.lin1",
        "feedforward.down": "ffn.lin2",
        "feedforward.norm": "output_layer_norm",
    },
    "distilbert.transformer.layer",
)
CLASSIFIER = (HeadLayer("pre_classifier", activation="relu"), HeadLayer("classifier", "labels"))
HEADS: Heads = {
    "classify": TaskHead(CLASSIFIER, "cls"),
    "tag": TaskHead((HeadLayer("classifier", "labels"),)),
    "answer": TaskHead((HeadLayer("qa_outputs", "labels"),)),
    "fill": TaskHead(
        (HeadLayer("vocab_transform", activation="hidden"), HeadLayer("vocab_layer_norm", "norm")),
        decoder="vocab_projector",
        bias="vocab_projector.bias",
    ),
    "MultipleChoice": choice_head(*CLASSIFIER),
}

DISTILBERT = StandardEncoder(
    "distilbert",
    names=NAMES,
    heads=HEADS,
    keys={
        "width": "dim",
        "heads": "n_heads",
        "layers": "n_layers",
        "feed_forward": "hidden_dim",
        "activation": "activation",
        "norm_eps": "",
        "types": "",
    },
).family()
