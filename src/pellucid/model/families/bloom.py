"""BLOOM (BigScience 2022): a decoder with ALiBi, a norm of the embedding, layer norms and biases."""

from __future__ import annotations

from msgspec.structs import replace

from pellucid.model.config import Config
from pellucid.model.spec import ModelSpec, Norm
from pellucid.model.standard_decoder import UNGROUPED_KEYS, StandardDecoder
from pellucid.model.tensor_names import TensorNames

NAMES = TensorNames(
    {
        "model.embed": "transformer.word_embeddings",
        "model.embed.norm": "transformer.word_embeddings_layernorm",
        "model.norm": "transformer.ln_f",
        "model.project": "lm_head",
        "attention.q,k,v": "self_attention.query_key_value",
        "attention.output": "self_attention.dense",
        "attention.norm": "input_layernorm",
        "feedforward.up": "mlp.dense_h_to_4h",
        "feedforward.down": "mlp.dense_4h_to_h",
        "feedforward.norm": "post_attention_layernorm",
    },
    "transformer.h",
    by_group=frozenset({"self_attention.query_key_value"}),
)


def _embedding_norm(config: Config, spec: ModelSpec) -> ModelSpec:
    return replace(spec, embedding=replace(spec.embedding, norm=spec.final_norm))


def _from_config(config: Config, spec: ModelSpec) -> ModelSpec:
    config.flag("slow_but_exact", False)  # changes only the order of a sum
    config.refuse("apply_residual_connection_post_layernorm", False)
    return _embedding_norm(config, spec)


BLOOM = StandardDecoder(
    "bloom",
    positions="alibi",
    bias=True,
    output_bias=True,
    activation="gelu_tanh",
    gated=False,
    feedforward_bias=True,
    widening=4,
    norm=Norm("layer", 1e-5),
    tied=True,
    defaults={"context": 2048},
    keys={
        "context": "seq_length",
        "heads": "n_head",
        **UNGROUPED_KEYS,
        "feed_forward": "n_inner",
        "layers": "n_layer",
        "norm_eps": "layer_norm_epsilon",
    },
    aliases={"hidden_size": "n_embed", "n_head": "num_attention_heads", "n_layer": "num_hidden_layers"},
    names=NAMES,
    gguf_change=_embedding_norm,
    config_change=_from_config,
).family()
