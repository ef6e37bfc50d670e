"""BERT (Devlin et al. 2019), also as a sentence encoder (Reimers and Gurevych 2019) and a cross-encoder.

BERT has post-norms, bidirectional attention, learned positions and type embeddings. GGUF files of the architecture
"bert" also hold models of RoBERTa, XLM-R and DistilBERT.
"""

from __future__ import annotations

from msgspec.structs import replace

from pellucid.model.config import Config
from pellucid.model.families import jina_bert
from pellucid.model.output_heads import HeadLayer, Heads, TaskHead, choice_head
from pellucid.model.outputs import Labels
from pellucid.model.standard_encoder import StandardEncoder, bert_names
from pellucid.model.tensor_names import GGUF
from pellucid.model.weight_map import Model
from pellucid.weights.checkpoint import Checkpoint


def heads(base: str) -> Heads:
    """The heads, for a model whose tensors have names with the first part ``base``."""
    pooler, labels = HeadLayer(f"{base}.pooler.dense", activation="tanh"), HeadLayer("classifier", "labels")
    return {
        "classify": TaskHead((pooler, labels), "cls"),
        "tag": TaskHead((labels,)),
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
            (pooler, HeadLayer("cls.seq_relationship", "labels")),
            "cls",
            labels=Labels(("next", "random")),
            task="classify",
        ),
        "MultipleChoice": choice_head(pooler, labels),
    }


HEADS = heads("bert")
STANDARD = StandardEncoder(
    "bert",
    names=bert_names("bert"),
    heads=HEADS,
    gguf_names=GGUF
    | {
        "model.embed.types": "token_types",
        "attention.norm": "attn_output_norm",
        "feedforward.norm": "layer_output_norm",
    },
    # in models of BertForPreTraining, beside the masked language model
    unused=(r"cls\.seq_relationship\..+",),
)


def from_config(checkpoint: Checkpoint, config: Config) -> Model:
    """Read ``config.json`` of BertModel, or of Jina's BERT, whose scores decrease with the distance."""
    if config.value("position_embedding_type") == "alibi":
        return jina_bert.from_config(checkpoint, config, HEADS)
    return STANDARD.from_config(checkpoint, config)


BERT = replace(STANDARD.family(), safetensors={"bert": from_config})
