"""GTE (Zhang et al. 2024, mGTE): gte-base-en-v1.5, gte-multilingual-base and its reranker, Snowflake Arctic Embed v2.

GTE has the norms of BERT, rotary positions and a gated feed-forward, whose last matrix has a bias. Published
files name the architecture "new" (Alibaba-NLP/new-impl on the hub) or "gte".
"""

from __future__ import annotations

import math
from typing import Literal

from pellucid.model.config import MAX_LAYERS, Config
from pellucid.model.family import Family
from pellucid.model.metadata import rope_parameters
from pellucid.model.output_heads import HeadLayer, Heads, TaskHead, encoder_heads, fill_head
from pellucid.model.positions import Rotary
from pellucid.model.spec import Block, Embedding, FeedForward, ModelSpec, Norm
from pellucid.model.standard_encoder import ACTIVATIONS, bidirectional, encoder_model, head_sizes
from pellucid.model.tensor_names import TensorNames
from pellucid.model.weight_map import Model
from pellucid.weights.checkpoint import Checkpoint

BASES = {"gte": 160_000.0, "new": 10_000.0}
"""Default of the rotary base by architecture."""


def _names(base: str, packed: bool) -> TensorNames:
    queries = (
        {"attention.q,k,v": "attention.qkv_proj"}
        if packed
        else {f"attention.{part}": f"attention.{part}_proj" for part in "qkv"}
    )
    return TensorNames(
        {
            "model.embed": f"{base}.embeddings.word_embeddings",
            "model.embed.types": f"{base}.embeddings.token_type_embeddings",
            "model.embed.norm": f"{base}.embeddings.LayerNorm",
            **queries,
            "attention.output": "attention.o_proj",
            "attention.norm": "attn_ln",
            "feedforward.gate,up": "mlp.up_gate_proj",
            "feedforward.down": "mlp.down_proj",
            "feedforward.norm": "mlp_ln",
        },
        f"{base}.encoder.layer",
        up_first=True,
    )


def _heads(base: str) -> Heads:
    layers = (HeadLayer(f"{base}.pooler.dense", activation="tanh"), HeadLayer("classifier", "labels"))
    fill = fill_head("lm_head.dense", "lm_head.norm", "lm_head.decoder", "lm_head.decoder.bias")
    return encoder_heads(TaskHead(layers, "cls"), fill)


def _rotary(config: Config, head_dim: int) -> Rotary:
    """Rotary positions, with the fixed and mixed NTK scaling of new-impl (Su 2023, https://kexue.fm/archives/9706)."""
    usual = BASES[config.text("model_type")]
    stated = config.table("rope_scaling")
    if stated.value("type") != "ntk":
        base, scaling = rope_parameters(config, default=usual)
        return Rotary(base, head_dim, "half", scaling)
    base, factor = config.number("rope_theta", usual, low=1.0), stated.number("factor")
    pairs = head_dim // 2
    if stated.has("mixed_b"):
        power = stated.number("mixed_b")
        growth = math.log(factor) / pairs**power
        return Rotary(base, head_dim, "half", factors=tuple(math.exp(growth * j**power) for j in range(1, pairs + 1)))
    return Rotary(base * factor, head_dim, "half", factors=(factor ** (2 / head_dim),) * pairs)


def from_config(checkpoint: Checkpoint, config: Config) -> Model:
    """Read ``config.json`` of GteModel, or of NewModel of the hub."""
    config.refuse("position_embedding_type", "rope")
    config.refuse("logn_attention_scale", False)
    config.value("pack_qkv")  # the tensors state it
    config.value("logn_attention_clip1")  # an option of the refused scaling
    kinds: dict[str, Literal["layer", "rms"]] = {"layer_norm": "layer", "rms_norm": "rms"}
    eps = config.number("layer_norm_eps", 1e-12)
    norm = Norm(config.choice("layer_norm_type", kinds, "layer_norm"), eps)
    width, (_, head_dim) = config.count("hidden_size"), head_sizes(config)
    layers = config.count("num_hidden_layers", limit=MAX_LAYERS)
    activation = config.choice("hidden_act", ACTIVATIONS, "gelu")
    attention = bidirectional(config, rotary=_rotary(config, head_dim), bias=True, output_bias=True)
    feedforward = FeedForward(config.count("intermediate_size"), activation, gated=True, output_bias=True)
    types = config.optional_count("type_vocab_size") if config.has("type_vocab_size") else 1
    body = ModelSpec(
        "gte",
        checkpoint.path.name,
        config.count("max_position_embeddings"),
        Embedding(config.count("vocab_size"), width, types=types, norm=Norm("layer", eps)),
        (Block(attention, feedforward, norm, "post"),) * layers,
    )
    base = "new" if any(name.startswith("new.") for name in checkpoint.tensors) else "gte"
    packed = not any(name.endswith("attention.q_proj.weight") for name in checkpoint.tensors)
    names = _names(base, packed)
    return encoder_model(checkpoint, config, body, names, _heads(base), activation, body.embedding.norm)


GTE = Family(
    "gte",
    safetensors={"gte": from_config, "new": from_config},
    # A pooler without a classifier is not run; a tied decoder equals the embedding.
    unused=(r"((new|gte)\.)?pooler\..+", r"lm_head\.decoder\.weight"),
    skipped=(r"(lm_head|classifier|qa_outputs)\..+",),
)
