"""OPT and XGLM (Zhang et al. 2022; Lin et al. 2021)."""

from __future__ import annotations

from msgspec.structs import replace

from pellucid.model.config import Config
from pellucid.model.positions import Sinusoidal
from pellucid.model.spec import ModelSpec
from pellucid.model.standard_decoder import GPT_LIKE, UNGROUPED_KEYS
from pellucid.model.tensor_names import FAIRSEQ_BLOCK, TensorNames
from pellucid.model.weight_map import Model
from pellucid.weights.checkpoint import Checkpoint

# OPT (Zhang et al. 2022), a reproduction of GPT-3: learned positions, pre-norms, ReLU.
#
# OPT-350M has norms after the residual additions, no final norm, and a narrower embedding.

OFFSET = 2  # rows of the table of positions before position 0
NAMES = TensorNames(
    {
        "model.embed": "model.decoder.embed_tokens",
        "model.position": "model.decoder.embed_positions",
        "model.norm": "model.decoder.final_layer_norm",
        "model.project": "lm_head",
        "model.embed.widen": "model.decoder.project_in",
        "model.project.narrow": "model.decoder.project_out",
        **FAIRSEQ_BLOCK,
    },
    "model.decoder.layers",
)


def _from_config(config: Config, spec: ModelSpec) -> ModelSpec:
    affine = config.flag("layer_norm_elementwise_affine", True)
    norm = replace(spec.blocks[0].norm, weight=affine, bias=affine)
    before = config.flag("do_layer_norm_before", True)
    final = before and not config.flag("_remove_final_layer_norm", False)
    width = config.count("word_embed_proj_dim", spec.embedding.width)
    narrow = width if width != spec.embedding.width else 0
    spec = spec.with_blocks(norm=norm, placement="pre" if before else "post")
    return replace(spec, embedding=replace(spec.embedding, narrow=narrow), final_norm=norm if final else None)


_DECODER = replace(
    GPT_LIKE,
    name="opt",
    positions="learned",
    activation="relu",
    architecture=None,
    keys={
        **UNGROUPED_KEYS,
        "feed_forward": "ffn_dim",
        "activation": "activation_function",
        "norm_eps": "layer_norm_eps",
        "bias": "enable_bias",
        "feedforward_bias": "enable_bias",
    },
    names=NAMES,
    config_change=_from_config,
)


def from_config(checkpoint: Checkpoint, config: Config) -> Model:
    """Read ``config.json``. The table of positions has two rows before position 0."""
    model = _DECODER.from_config(checkpoint, config)
    table = model.sources("position.weight")[0]
    rows = replace(table, rows=(OFFSET, model.spec.context + OFFSET))
    before = replace(table, rows=(0, OFFSET))
    return replace(model, slots={**model.slots, "position.weight": rows}, ignored=(before,))


OPT = replace(_DECODER.family(), safetensors={"opt": from_config})


# XGLM (Lin et al. 2021): sinusoidal positions, layer norms before attention and feed-forward, scaled embeddings.

XGLM_OFFSET = 2  # position of the first token


def _xglm_from_config(config: Config, spec: ModelSpec) -> ModelSpec:
    width = spec.embedding.width
    if width % 2 or width < 4:
        raise config.error("d_model", f"is {width}; it must be an even number from 4")
    scale = width**0.5 if config.flag("scale_embedding", True) else 1.0
    return replace(spec, embedding=replace(spec.embedding, scale=scale), position=Sinusoidal(10_000.0, XGLM_OFFSET))


XGLM = replace(
    GPT_LIKE,
    name="xglm",
    architecture=None,
    positions="none",
    activation="gelu",
    keys={
        **UNGROUPED_KEYS,
        "width": "d_model",
        "heads": "attention_heads",
        "feed_forward": "ffn_dim",
        "layers": "num_layers",
        "activation": "activation_function",
        "norm_eps": "",
    },
    aliases={"d_model": "hidden_size", "attention_heads": "num_attention_heads", "num_layers": "num_hidden_layers"},
    names=replace(
        NAMES | {"model.embed": "model.embed_tokens", "model.norm": "model.layer_norm"}, prefix="model.layers"
    ),
    config_change=_xglm_from_config,
).family()
