"""Nemotron, Minitron and Nemotron-H (NVIDIA 2024, 2025)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, TypeAlias

from msgspec.structs import replace

from pellucid.errors import UnsupportedModel
from pellucid.model.config import MAX_LAYERS, Config
from pellucid.model.hybrid import config_mamba, gguf_mamba, with_gguf_mamba, with_mamba
from pellucid.model.spec import Attention, Block, FeedForward, Mamba, Mixture, ModelSpec, Norm
from pellucid.model.standard_decoder import StandardDecoder
from pellucid.model.standard_mixture import StandardMixture
from pellucid.model.tensor_names import GGUF, TRANSFORMERS

# Nemotron and Minitron (Parmar et al. 2024): layer norms with 1 + w, squared ReLU, half of each head rotated.

NEMOTRON = StandardDecoder(
    "nemotron",
    rotated=0.5,
    activation="relu2",
    gated=False,
    norm=Norm("layer", 1e-5),
    keys={"norm_eps": "norm_eps"},
    names=replace(TRANSFORMERS, norm_plus=1.0),
).family()


# Nemotron-H (NVIDIA 2025): each layer is Mamba-2, attention without positions, a feed-forward or a mixture.

Kind: TypeAlias = Literal["mamba", "attention", "mlp", "moe"]
KINDS: Mapping[str, Kind] = {
    "linear_attention": "mamba",
    "mamba": "mamba",
    "full_attention": "attention",
    "attention": "attention",
    "mlp": "mlp",
    "moe": "moe",
}
LETTERS: Mapping[str, Kind] = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}
STEP = 0.001  # default of the minimum step size of a token
TYPES, PATTERN = "layers_block_type", "hybrid_override_pattern"
SHAPE_KEYS = {
    "state_heads": "mamba_num_heads",
    "state_value": "mamba_head_dim",
    "state_groups": "n_groups",
    "state_dim": "ssm_state_size",
    "taps": "conv_kernel",
    "pattern": TYPES,
}


def _kinds(config: Config) -> list[Kind]:
    """The kind of each layer, from a list of names or, in older files, a string of letters."""
    if not config.has(TYPES):
        pattern = config.text(PATTERN)
        if not pattern or len(pattern) > MAX_LAYERS or set(pattern) - LETTERS.keys():
            raise config.error(PATTERN, f"must be a string of 1 to {MAX_LAYERS} characters out of {', '.join(LETTERS)}")
        return [LETTERS[letter] for letter in pattern]
    stated = config.value(TYPES)
    layers = len(stated) if isinstance(stated, list) else 0
    if not 1 <= layers <= MAX_LAYERS:
        raise config.error(TYPES, f"must be a list of 1 to {MAX_LAYERS} kinds of layers")
    return config.choices(TYPES, KINDS, layers) or []


def _block(kind: Kind, spec: ModelSpec, mamba: Mamba, dense: FeedForward) -> Block:
    attention: Attention = spec.attention
    norm, mixture = spec.blocks[0].norm, spec.blocks[0].feedforward
    of_kind = {
        "mamba": Block(None, None, norm, "pre", recurrent=mamba),
        "attention": Block(replace(attention, rotary=None), None, norm, "pre"),
        "mlp": Block(None, dense, norm, "pre"),
        "moe": Block(None, mixture, norm, "pre"),
    }
    return of_kind[kind]


def _from_config(config: Config, spec: ModelSpec) -> ModelSpec:
    config.choice("mamba_hidden_act", {"silu": "silu", "swish": "silu"}, "silu")
    config.refuse("moe_latent_size")
    for key in ("mlp_bias", "attention_bias"):  # transformers does not implement these biases
        config.refuse(key, False)
    limit = config.number_tuple("time_step_limit", (0.0, math.inf))
    if limit != (0.0, math.inf):
        raise UnsupportedModel(
            f"{config.path.name}: {config.name('time_step_limit')} is {list(limit)}; it must be [0, Infinity] or left "
            "out: transformers ignores it"
        )
    config.check_count("n_shared_experts", 1, "because transformers always uses one")
    for key in ("mamba_proj_bias", "num_hidden_layers", "mtp_layers_block_type"):
        # Count these keys as read, because transformers does not use them for the layers.
        config.value(key)
    mamba = config_mamba(
        config,
        spec.blocks[0].norm,
        SHAPE_KEYS,
        expand="",
        conv_bias="use_conv_bias",
        bias="use_bias",
        output_bias="use_bias",
    )
    mamba = replace(mamba, limits=(config.number("time_step_min", STEP), math.inf))
    kinds = _kinds(config)
    ff = spec.blocks[0].feedforward
    if isinstance(ff, FeedForward) and "moe" in kinds:
        raise config.error(TYPES, "has layers of kind moe, but n_routed_experts is missing")
    dense = ff.expert if isinstance(ff, Mixture) else ff
    assert dense is not None
    dense = replace(dense, width=config.count("intermediate_size"))
    return replace(spec, blocks=tuple(_block(kind, spec, mamba, dense) for kind in kinds))


def _from_gguf(config: Config, spec: ModelSpec) -> ModelSpec:
    layers = len(spec.blocks)
    for key in ("rope.dimension_count", "rope.scaling.finetuned"):  # the model has no rotary positions
        config.value(key)
    kv_heads = config.by_layer("attention.head_count_kv", layers)
    widths = config.by_layer("feed_forward_length", layers)
    mamba = gguf_mamba(config, spec.blocks[0].norm)
    blocks = []
    for heads, width in zip(kv_heads, widths):
        ff = spec.blocks[0].feedforward
        kind: Kind = "moe" if isinstance(ff, Mixture) else "mlp"
        dense = FeedForward(width or 1, "relu2", gated=False)
        blocks.append(_block("attention" if heads else kind if width else "mamba", spec, mamba, dense))
    return replace(spec, blocks=tuple(blocks))


_NAMES = with_mamba(
    TRANSFORMERS
    | {
        "model.embed": "backbone.embeddings",
        "model.norm": "backbone.norm_f",
        "attention,recurrent,feedforward.norm": "norm",
        "attention.q": "mixer.q_proj",
        "attention.k": "mixer.k_proj",
        "attention.v": "mixer.v_proj",
        "attention.output": "mixer.o_proj",
        "feedforward.up": "mixer.up_proj",
        "feedforward.down": "mixer.down_proj",
        "feedforward.router": "mixer.gate",
        "feedforward.correction.bias": "mixer.gate.e_score_correction_bias",
        "feedforward.experts.up": "mixer.experts.{}.up_proj",
        "feedforward.experts.down": "mixer.experts.{}.down_proj",
        "feedforward.shared.up": "mixer.shared_experts.up_proj",
        "feedforward.shared.down": "mixer.shared_experts.down_proj",
    },
    "mixer",
)
_NEMOTRON_H = StandardDecoder(
    "nemotron_h",
    gguf_also=("nemotron_h_moe",),
    positions="none",
    activation="relu2",
    gated=False,
    norm=Norm("rms", 1e-5),
    mixture=StandardMixture(
        score="sigmoid",
        normalize=True,
        correction=True,
        group_best=2,
        optional=True,
        count_optional=True,
        keys={
            "scale": "routed_scaling_factor",
            "groups": "n_group",
            "kept": "topk_group",
            "shared_width": "moe_shared_expert_intermediate_size",
        },
    ),
    layer_count=lambda config: len(_kinds(config)),
    aliases={"head_dim": "attention_head_dim"},
    mtp_layers="num_nextn_predict_layers",
    keys={
        "layers": TYPES,
        "activation": "mlp_hidden_act",
        "norm_eps": "layer_norm_epsilon",
        "output_bias": "",
        "feedforward_bias": "",
        **SHAPE_KEYS,
    },
    pattern=("linear_attention", "mlp", "full_attention", "mlp"),
    kv_by_layer=True,
    skipped=(r"mtp\..*",),
    names=replace(_NAMES, prefix="backbone.layers"),
    gguf_names=with_gguf_mamba(GGUF | {"feedforward.norm": "attn_norm"}),
    config_change=_from_config,
    gguf_change=_from_gguf,
)
NEMOTRON_H = _NEMOTRON_H.family()
