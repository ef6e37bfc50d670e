"""Falcon (Almazrouei et al. 2023): parallel attention and feed-forward, few key/value heads."""

from __future__ import annotations

from msgspec.structs import replace

from pellucid.model.config import Config
from pellucid.model.families.bloom import NAMES
from pellucid.model.family import Family
from pellucid.model.rotary_metadata import rope_parameters
from pellucid.model.spec import Attention, Norm
from pellucid.model.standard_decoder import UNGROUPED_KEYS, StandardDecoder
from pellucid.model.tensor_names import GGUF
from pellucid.model.weight_map import Model
from pellucid.weights.checkpoint import Checkpoint

TWO_NORMS = NAMES | {
    "attention.norm": "ln_attn",
    "feedforward.norm": "ln_mlp",
}
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
