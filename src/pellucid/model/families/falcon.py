"""Falcon and Falcon-H1 (Almazrouei et al. 2023; TII 2025)."""

from __future__ import annotations

from collections.abc import Container

from msgspec.structs import replace

from pellucid.model.config import Config
from pellucid.model.families.bloom import NAMES
from pellucid.model.family import Family
from pellucid.model.hybrid import SHAPE_KEYS, beside, config_mamba, gguf_mamba, with_gguf_mamba, with_mamba
from pellucid.model.metadata import rope_parameters
from pellucid.model.spec import Attention, Mamba, ModelSpec, Norm
from pellucid.model.standard_decoder import UNGROUPED_KEYS, StandardDecoder
from pellucid.model.tensor_names import GGUF, TRANSFORMERS
from pellucid.model.weight_map import Model
from pellucid.weights.checkpoint import Checkpoint

# Falcon (Almazrouei et al. 2023): parallel attention and feed-forward, few key/value heads.

TWO_NORMS = NAMES | {"attention.norm": "ln_attn", "feedforward.norm": "ln_mlp"}
DECODER = StandardDecoder(
    "falcon",
    activation="gelu",
    gated=False,
    widening=4,
    norm=Norm("layer", 1e-5),
    tied=True,
    defaults={"context": 2048},
    keys={
        **UNGROUPED_KEYS,
        "feed_forward": "ffn_hidden_size",
        "activation": "activation",
        "norm_eps": "layer_norm_epsilon",
        "bias": "bias",
        "feedforward_bias": "bias",
    },
    aliases={"hidden_size": "n_embed"},
    names=NAMES,
)


def _from_gguf(checkpoint: Checkpoint, config: Config) -> Model:
    """Read ``falcon.*`` metadata. Files with the newer decoder architecture have a second norm."""
    two = "blk.0.attn_norm_2.weight" in checkpoint.tensors
    names = GGUF | {"attention.norm": "attn_norm_2", "feedforward.norm": "attn_norm"} if two else GGUF
    decoder = replace(DECODER, placement="parallel" if two else "shared", gguf_names=names)
    return decoder.from_gguf(checkpoint, config)


def _from_config(checkpoint: Checkpoint, config: Config) -> Model:
    """Read ``config.json``. Its flags select one of three placements of norms and the number of key/value heads."""
    # ALiBi biases are rounded to bfloat16, then multiplied by the scale of the scores (decision 42).
    alibi = config.flag("alibi", False)
    if alibi:
        # Count these keys as read, because files with ALiBi also have them.
        rope_parameters(config)
    newer = config.flag("new_decoder_architecture", False)
    parallel = config.flag("parallel_attn", True) or newer
    stated = config.count("num_ln_in_parallel_attn", 2, limit=2)
    norms = stated if newer else 1
    multi_query = config.flag("multi_query", True)
    heads = config.count("num_attention_heads")
    groups = config.divisor("num_kv_heads", "num_attention_heads", heads)
    kv_heads = groups if newer else 1 if multi_query else heads

    def changed(_: int, attention: Attention) -> Attention:
        scale = attention.scale if alibi else 1.0
        return replace(attention, kv_heads=kv_heads, alibi_scale=scale, alibi_rounded=alibi)

    decoder = replace(
        DECODER,
        positions="alibi" if alibi else "rotary",
        placement=("parallel" if norms == 2 else "shared") if parallel else "pre",
        names=TWO_NORMS if norms == 2 else NAMES,
        config_change=lambda _, spec: spec.change_attention(changed),
    )
    return decoder.from_config(checkpoint, config)


FALCON = Family("falcon", gguf={"falcon": _from_gguf}, safetensors={"falcon": _from_config})


# Falcon-H1 (TII 2025): Mamba-2 beside attention in every block, and many multipliers.
#
# GGUF files have no multipliers, because the converter of llama.cpp multiplies the weights by them.


def _falcon_h1_from_config(config: Config, spec: ModelSpec) -> ModelSpec:
    into, out, keys = (
        config.number(key, 1.0) for key in ("attention_in_multiplier", "attention_out_multiplier", "key_multiplier")
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


def _falcon_h1_from_gguf(config: Config, spec: ModelSpec) -> ModelSpec:
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
    config_change=_falcon_h1_from_config,
    gguf_change=_falcon_h1_from_gguf,
    gguf_tensors_change=_from_tensors,
).family()
