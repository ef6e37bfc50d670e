"""RoBERTa (Liu et al. 2019), and the encoders with its structure: CamemBERT (Martin et al. 2020), XLM-RoBERTa (Conneau
et al. 2020), and sentence encoders and rerankers such as BGE-M3, multilingual E5 and BGE rerankers.

RoBERTa is BERT with positions after the padding token, and with other heads.
"""

from __future__ import annotations

from msgspec.structs import replace

from pellucid.model.config import Config
from pellucid.model.families import jina_embeddings_v3
from pellucid.model.output_heads import HeadLayer, Heads, TaskHead, choice_head
from pellucid.model.standard_encoder import StandardEncoder, after_padding, bert_names
from pellucid.model.weight_map import Model
from pellucid.weights.checkpoint import Checkpoint


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
        return jina_embeddings_v3.from_config(checkpoint, config)
    return STANDARD.from_config(checkpoint, config)


ROBERTA = replace(
    STANDARD.family(),
    safetensors=dict.fromkeys(STANDARD.family().safetensors, from_config),
)
