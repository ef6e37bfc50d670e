"""RoBERTa and the encoders with its structure: CamemBERT, XLM-RoBERTa, XLM-RoBERTa XL, MPNet."""

from __future__ import annotations

from msgspec.structs import replace

from pellucid.model.config import Config
from pellucid.model.families import jina
from pellucid.model.output_heads import HeadLayer, Heads, TaskHead, choice_head
from pellucid.model.positions import RelativeBuckets
from pellucid.model.spec import ModelSpec
from pellucid.model.standard_encoder import StandardEncoder, after_padding, bert_names
from pellucid.model.weight_map import Model
from pellucid.weights.checkpoint import Checkpoint

# RoBERTa (Liu et al. 2019), and the encoders with its structure: CamemBERT (Martin et al. 2020), XLM-RoBERTa (Conneau
# et al. 2020), and sentence encoders and rerankers such as BGE-M3, multilingual E5 and BGE rerankers.
#
# RoBERTa is BERT with positions after the padding token, and with other heads.


def heads(base: str) -> Heads:
    """The heads, for a model whose tensors have names with the first part ``base``."""
    labels = HeadLayer("classifier", "labels")
    return {
        "classify": TaskHead(
            (HeadLayer("classifier.dense", activation="tanh"), HeadLayer("classifier.out_proj", "labels")), "cls"
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


STANDARD = StandardEncoder(
    "roberta",
    names=bert_names("roberta"),
    heads=heads("roberta"),
    also=("camembert", "xlm-roberta"),
    first_position=after_padding,
)


def from_config(checkpoint: Checkpoint, config: Config) -> Model:
    """Read ``config.json`` of RobertaModel and the models like it, or of Jina's XLM-R, which has rotary positions."""
    if config.value("position_embedding_type") == "rotary":
        return jina.jina_embeddings_v3_from_config(checkpoint, config)
    return STANDARD.from_config(checkpoint, config)


ROBERTA = replace(STANDARD.family(), safetensors=dict.fromkeys(STANDARD.family().safetensors, from_config))


# XLM-RoBERTa XL (Goyal et al. 2021): XLM-RoBERTa with norms before attention and feed-forward.

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


# MPNet (Song et al. 2020): an encoder with learned positions, and with learned biases of distances for all layers.

NAMES = bert_names("mpnet") | {
    "model.relative": "mpnet.encoder.relative_attention_bias",
    "attention.q": "attention.attn.q",
    "attention.k": "attention.attn.k",
    "attention.v": "attention.attn.v",
    "attention.output": "attention.attn.o",
    "attention.norm": "attention.LayerNorm",
}
BUCKETS = RelativeBuckets(32, 128)
FIRST_POSITION = 2
"""transformers numbers positions from 2 on, and computes 32 buckets, whatever config.json states."""


def with_buckets(config: Config, spec: ModelSpec) -> ModelSpec:
    """The spec with the biases of distances."""
    config.check_count("relative_attention_num_buckets", BUCKETS.count, "the number that transformers computes")
    return spec.with_attention(relative=BUCKETS)


MPNET = StandardEncoder(
    "mpnet",
    names=NAMES,
    heads=heads("mpnet"),
    first_position=lambda config: FIRST_POSITION,
    keys={"types": ""},
    change=with_buckets,
).family()
