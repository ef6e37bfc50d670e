"""MPNet (Song et al. 2020): an encoder with learned positions and learned biases of distances."""

from __future__ import annotations

from pellucid.model.config import Config
from pellucid.model.families.roberta import heads
from pellucid.model.positions import RelativeBuckets
from pellucid.model.spec import ModelSpec
from pellucid.model.standard_encoder import StandardEncoder, bert_names

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
    config.check_count(
        "relative_attention_num_buckets", BUCKETS.count, "the number that transformers computes"
    )
    return spec.with_attention(relative=BUCKETS)


MPNET = StandardEncoder(
    "mpnet",
    names=NAMES,
    heads=heads("mpnet"),
    first_position=lambda config: FIRST_POSITION,
    keys={"types": ""},
    change=with_buckets,
).family()
