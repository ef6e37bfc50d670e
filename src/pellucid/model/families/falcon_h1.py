"""Falcon-H1 (TII 2025): Mamba-2 beside attention in every block, and many multipliers.

GGUF files have no multipliers, because the converter of llama.cpp multiplies the weights by them.
"""

from __future__ import annotations

from collections.abc import Container

from msgspec.structs import replace

from pellucid.model.config import Config
from pellucid.model.hybrid import SHAPE_KEYS, beside, config_mamba, gguf_mamba, with_gguf_mamba, with_mamba
from pellucid.model.spec import Attention, Mamba, ModelSpec, Norm
from pellucid.model.standard_decoder import StandardDecoder
from pellucid.model.tensor_names import GGUF, TRANSFORMERS


def _from_config(config: Config, spec: ModelSpec) -> ModelSpec:
    into, out, keys = (
        config.number(key, 1.0)
        for key in ("attention_in_multiplier", "attention_out_multiplier", "key_multiplier")
    )
    first = config.number("ssm_in_multiplier", 1.0)
    # Factors of inputs are moved to the outputs of the matrix products. With a bias this is not possible.
    for factor, key in ((into, "attention_bias"), (first, "mamba_proj_bias")):
        if factor != 1:
            config.refuse(key, False)
    gate, down = config.number_tuple("mlp_multipliers", (1.0, 1.0))
    inner = config.number_tuple("ssm_multipliers", (1.0,) * 5)
    norm = spec.blocks[0].norm if config.flag("mamba_rms_norm", False) else None
    mamba = config_mamba(config, norm, inner="mamba_d_ssm", output_bias="projectors_bias")
    mamba = replace(
        mamba,
        multipliers=tuple(first * factor for factor in inner),
        output_scale=config.number("ssm_out_multiplier", 1.0),
        norm_first=config.flag("mamba_norm_before_gate", True),
    )

    def scaled(_: int, attention: Attention) -> Attention:
        return replace(attention, scale=attention.scale * into * into * keys, output_scale=into * out)

    spec = spec.change_attention(scaled).change_dense(
        lambda _, dense: replace(dense, gate_scale=gate, output_scale=down)
    )
    assert spec.head is not None
    return replace(
        beside(spec, mamba),
        embedding=replace(spec.embedding, scale=config.number("embedding_multiplier", 1.0)),
        head=replace(spec.head, scale=config.number("lm_head_multiplier", 1.0)),
    )


def _from_gguf(config: Config, spec: ModelSpec) -> ModelSpec:
    return beside(spec, gguf_mamba(config, spec.blocks[0].norm))


def _from_tensors(tensors: Container[str], spec: ModelSpec) -> ModelSpec:
    """Add the norm of Mamba-2's output and the bias of its convolution, if the file has their tensors."""
    mamba = spec.blocks[0].recurrent
    assert isinstance(mamba, Mamba)
    norm = mamba.norm if "blk.0.ssm_norm.weight" in tensors else None
    return beside(spec, replace(mamba, norm=norm, conv_bias="blk.0.ssm_conv1d.bias" in tensors))


FALCON_H1 = StandardDecoder(
    "falcon_h1",
    architecture="falcon-h1",
    norm=Norm("rms", 1e-5),
    keys={**SHAPE_KEYS, "pattern": ""},
    names=with_mamba(
        TRANSFORMERS
        | {
            "model.norm": "model.final_layernorm",
            "feedforward.norm": "pre_ff_layernorm",
            "feedforward.gate": "feed_forward.gate_proj",
            "feedforward.up": "feed_forward.up_proj",
            "feedforward.down": "feed_forward.down_proj",
        },
        "mamba",
    ),
    gguf_names=with_gguf_mamba(GGUF | {"feedforward.norm.weight": "ffn_norm"}),
    config_change=_from_config,
    gguf_change=_from_gguf,
    gguf_tensors_change=_from_tensors,
).family()
