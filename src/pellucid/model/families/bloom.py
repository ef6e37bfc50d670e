"""BLOOM and MPT: decoders with ALiBi."""

from __future__ import annotations

from msgspec.structs import replace

from pellucid.model.config import Config
from pellucid.model.spec import ModelSpec, Norm
from pellucid.model.standard_decoder import GPT_LIKE, UNGROUPED_KEYS, StandardDecoder
from pellucid.model.tensor_names import TensorNames

# BLOOM (BigScience 2022): a decoder with ALiBi, a norm of the embedding, layer norms and biases.

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


BLOOM = replace(
    GPT_LIKE,
    name="bloom",
    positions="alibi",
    widening=4,
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


# MPT (MosaicML 2023): ALiBi, layer norms without biases, an ungated feed-forward with GELU.

WIDENING = 4  # F / D
SLOPES = 8  # default of ALiBi's largest exponent
MPT_NAMES = TensorNames(
    {
        "model.embed": "transformer.wte",
        "model.norm": "transformer.norm_f",
        "model.project": "lm_head",
        "attention.q,k,v": "attn.Wqkv",
        "attention.output": "attn.out_proj",
        "attention.norm": "norm_1",
        "feedforward.up": "ffn.up_proj",
        "feedforward.down": "ffn.down_proj",
        "feedforward.norm": "norm_2",
    },
    "transformer.blocks",
)


def _attention(config: Config, spec: ModelSpec) -> ModelSpec:
    """Read the table ``attn_config`` as transformers does."""
    config.value("init_device")
    config.number("embedding_fraction", 1.0, high=1.0)  # a fraction of the gradients
    # ALiBi replaces learned positions. A tensor of positions would be refused.
    config.value("learned_pos_emb")
    config.refuse("no_bias", True)
    config.refuse("logit_scale")
    config.refuse("norm_type", "low_precision_layernorm")
    attention = config.table("attn_config")
    for key, harmless in (("attn_type", "multihead_attention"), ("alibi", True)):
        attention.refuse(key, harmless)
    for key in ("qk_ln", "prefix_lm", "attn_uses_sequence_id"):
        attention.refuse(key, False)
    attention.refuse("is_encoder_decoder", False)
    attention.value("attn_impl")  # an implementation of the same computation
    scale = attention.number("softmax_scale", spec.attention.scale)
    config.check_count("expansion_ratio", WIDENING, "because transformers always uses this ratio")
    width = WIDENING * spec.embedding.width
    most, clip = attention.number("alibi_bias_max", SLOPES), attention.optional_number("clip_qkv")
    return spec.with_attention(scale=scale, alibi_most=most, clip=clip).change_dense(
        lambda _, dense: replace(dense, width=width)
    )


def _from_gguf(config: Config, spec: ModelSpec) -> ModelSpec:
    """Read the largest exponent of the slopes, and the limit of the clip. An exponent of 0 (no ALiBi) is refused."""
    most, clip = (config.number("attention.max_alibi_bias", SLOPES), config.optional_number("attention.clamp_kqv"))
    return spec.with_attention(alibi_most=most, clip=clip)


MPT = StandardDecoder(
    "mpt",
    positions="alibi",
    activation="gelu",
    gated=False,
    widening=WIDENING,
    norm=Norm("layer", 1e-5, bias=False),
    tied=True,
    keys={
        "context": "max_seq_len",
        "width": "d_model",
        "heads": "n_heads",
        **UNGROUPED_KEYS,
        "feed_forward": "ffn_hidden_size",
        "layers": "n_layers",
        "norm_eps": "layer_norm_epsilon",
    },
    aliases={"d_model": "hidden_size", "n_heads": "num_attention_heads", "n_layers": "num_hidden_layers"},
    names=MPT_NAMES,
    gguf_change=_from_gguf,
    config_change=_attention,
).family()
