"""XGLM (Lin et al. 2021): sinusoidal positions, layer norms before attention and feed-forward, scaled embeddings."""

from __future__ import annotations

from msgspec.structs import replace

from pellucid.model.config import Config
from pellucid.model.families.opt import NAMES
from pellucid.model.positions import Sinusoidal
from pellucid.model.spec import ModelSpec, Norm
from pellucid.model.standard_decoder import UNGROUPED_KEYS, StandardDecoder

OFFSET = 2  # position of the first token


def _from_config(config: Config, spec: ModelSpec) -> ModelSpec:
    width = spec.embedding.width
    if width % 2 or width < 4:
        raise config.error("d_model", f"is {width}; it must be an even number from 4")
    scale = width**0.5 if config.flag("scale_embedding", True) else 1.0
    return replace(
        spec, embedding=replace(spec.embedding, scale=scale), position=Sinusoidal(10_000.0, OFFSET)
    )


XGLM = StandardDecoder(
    "xglm",
    architecture=None,
    positions="none",
    bias=True,
    output_bias=True,
    activation="gelu",
    gated=False,
    feedforward_bias=True,
    norm=Norm("layer", 1e-5),
    tied=True,
    keys={
        **UNGROUPED_KEYS,
        "width": "d_model",
        "heads": "attention_heads",
        "feed_forward": "ffn_dim",
        "layers": "num_layers",
        "activation": "activation_function",
        "norm_eps": "",
    },
    aliases={
        "d_model": "hidden_size",
        "attention_heads": "num_attention_heads",
        "num_layers": "num_hidden_layers",
    },
    names=replace(
        NAMES | {"model.embed": "model.embed_tokens", "model.norm": "model.layer_norm"},
        prefix="model.layers",
    ),
    config_change=_from_config,
).family()
