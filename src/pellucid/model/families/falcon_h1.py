"""Falcon-H1 (TII 2025): Mamba-2 beside attention in every block, and factors in many places.

llama.cpp's converter multiplies the weights by these factors.
"""

from __future__ import annotations

from dataclasses import replace

from pellucid.model.config import Config
from pellucid.model.hybrid import beside, config_mamba, gguf_mamba, with_gguf_mamba, with_mamba
from pellucid.model.spec import Attention, FeedForward, Mixture, ModelSpec, Norm
from pellucid.model.standard_decoder import StandardDecoder
from pellucid.model.tensor_names import GGUF, TRANSFORMERS


def _from_config(config: Config, spec: ModelSpec) -> ModelSpec:
    into, out, keys = (
        config.number(key, 1.0)
        for key in ("attention_in_multiplier", "attention_out_multiplier", "key_multiplier")
    )
    if into != 1 and spec.attention.bias:
        config.refuse(
            "attention_bias", False
        )  # the factor is taken out of the products, which a bias forbids
    gate, down = config.several("mlp_multipliers", (1.0, 1.0))
    inner = config.several("ssm_multipliers", (1.0,) * 5)
    first = config.number("ssm_in_multiplier", 1.0)
    norm = None
    if config.flag("mamba_rms_norm", False):
        config.refuse("mamba_norm_before_gate", False)
        norm = spec.blocks[0].norm
    else:
        config.flag("mamba_norm_before_gate", True)
    if config.has("mamba_d_ssm"):
        mamba = config_mamba(config, norm, expand="", output_bias="projectors_bias")
        if mamba.heads * mamba.head_dim != config.count("mamba_d_ssm"):
            raise config.wrong(
                "mamba_d_ssm", f"is not mamba_n_heads * mamba_d_head = {mamba.heads * mamba.head_dim:,}"
            )
        config.value("mamba_expand")
    else:
        mamba = config_mamba(config, norm, output_bias="projectors_bias")
    mamba = replace(
        mamba,
        multipliers=tuple(first * one for one in inner),
        output_scale=config.number("ssm_out_multiplier", 1.0),
    )

    def scaled(_: int, attention: Attention) -> Attention:
        return replace(attention, scale=attention.scale * into * into * keys, output_scale=into * out)

    def feedforward(kind: FeedForward | Mixture) -> FeedForward | Mixture:
        return kind if isinstance(kind, Mixture) else replace(kind, gate_scale=gate, output_scale=down)

    assert spec.head is not None
    return replace(
        beside(spec.change_attention(scaled).change_feedforward(feedforward), mamba),
        embedding=replace(spec.embedding, scale=config.number("embedding_multiplier", 1.0)),
        head=replace(spec.head, scale=config.number("lm_head_multiplier", 1.0)),
    )


def _from_gguf(config: Config, spec: ModelSpec) -> ModelSpec:
    return beside(spec, gguf_mamba(config, None))


FALCON_H1 = StandardDecoder(
    "falcon_h1",
    architecture="falcon-h1",
    norm=Norm("rms", 1e-5),
    names=with_mamba(
        TRANSFORMERS.with_names(
            {"norm": "model.final_layernorm"},
            feedforward__norm="pre_ff_layernorm",
            feedforward__gate="feed_forward.gate_proj",
            feedforward__up="feed_forward.up_proj",
            feedforward__down="feed_forward.down_proj",
        ),
        "mamba",
    ),
    gguf_names=with_gguf_mamba(GGUF),
    config_change=_from_config,
    gguf_change=_from_gguf,
).family()
