"""RoFormer (Su et al. 2021): BERT with rotary positions, which this model introduced."""

from __future__ import annotations

from msgspec.structs import replace

from pellucid.model.config import Config
from pellucid.model.families.bert import heads
from pellucid.model.output_heads import HeadLayer, TaskHead
from pellucid.model.positions import Rotary
from pellucid.model.spec import ModelSpec
from pellucid.model.standard_encoder import StandardEncoder, bert_names


def _rotated(config: Config, spec: ModelSpec) -> ModelSpec:
    config.refuse("rotary_value", False)
    rotary = Rotary(10_000.0, spec.attention.head_dim, "interleaved")
    return replace(spec.with_attention(rotary=rotary), position=None)


DENSE = HeadLayer("classifier.dense", activation="hidden")
ROFORMER = StandardEncoder(
    "roformer",
    names=bert_names("roformer") | {"model.embed.widen": "roformer.embeddings_project"},
    heads={
        **heads("roformer"),
        "classify": TaskHead((DENSE, HeadLayer("classifier.out_proj", "labels")), "cls"),
    },
    narrow_layers=("cls.predictions.transform.dense",),
    keys={"narrow": "embedding_size"},
    change=_rotated,
    unused=(r"(roformer\.)?encoder\.embed_positions\.weight",),  # sines and cosines
).family()
