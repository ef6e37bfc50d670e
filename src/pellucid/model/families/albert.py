"""ALBERT (Lan et al. 2020): BERT with a narrow embedding, and layers that share their tensors."""

from __future__ import annotations

from pellucid.model.config import MAX_LAYERS, Config
from pellucid.model.output_heads import HeadLayer, Heads, TaskHead, choice_head
from pellucid.model.standard_encoder import StandardEncoder, bert_names

NAMES = bert_names("albert", "encoder.albert_layer_groups") | {
    "model.embed.widen": "albert.encoder.embedding_hidden_mapping_in",
    "attention.q": "attention.query",
    "attention.k": "attention.key",
    "attention.v": "attention.value",
    "attention.output": "attention.dense",
    "attention.norm": "attention.LayerNorm",
    "feedforward.up": "ffn",
    "feedforward.down": "ffn_output",
    "feedforward.norm": "full_layer_layer_norm",
}
POOLER, LABELS = HeadLayer("albert.pooler", activation="tanh"), HeadLayer("classifier", "labels")
HEADS: Heads = {
    "classify": TaskHead((POOLER, LABELS), "cls"),
    "tag": TaskHead((LABELS,)),
    "answer": TaskHead((HeadLayer("qa_outputs", "labels"),)),
    "fill": TaskHead(
        (HeadLayer("predictions.dense", activation="hidden"), HeadLayer("predictions.LayerNorm", "norm")),
        decoder="predictions.decoder",
        bias="predictions.bias",
    ),
    "MultipleChoice": choice_head(POOLER, LABELS),
}


def layer_names(config: Config, layers: int) -> list[str]:
    """The name of each block's tensors. The layers of a group repeat the inner layers of the group."""
    groups, inner = config.count("num_hidden_groups", 1), config.count("inner_group_num", 1)
    if layers * inner > MAX_LAYERS:
        raise config.error("inner_group_num", f"is {inner}; it must be at most {MAX_LAYERS // layers}")
    # As in transformers: the group of layer i is i / (layers / groups), in floating point.
    return [f"{int(i / (layers / groups))}.albert_layers.{k}" for i in range(layers) for k in range(inner)]


ALBERT = StandardEncoder(
    "albert",
    names=NAMES,
    heads=HEADS,
    narrow_layers=("predictions.dense",),
    widened=True,
    layer_names=layer_names,
    activation="gelu_new",
    keys={"narrow": "embedding_size"},
    unused=(r"sop_classifier\..+",),  # the order of two sentences, a task of the pre-training
).family()
