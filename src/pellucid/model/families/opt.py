"""OPT (Zhang et al. 2022), the published recipe of GPT-3: learned positions, pre-norms, ReLU."""

from __future__ import annotations

from dataclasses import replace

from pellucid.errors import UnsupportedModel
from pellucid.model.config import Config
from pellucid.model.filled import Model
from pellucid.model.spec import ModelSpec, Norm
from pellucid.model.standard_decoder import UNGROUPED_KEYS, StandardDecoder
from pellucid.model.tensor_names import TensorNames
from pellucid.weights.checkpoint import Checkpoint

OFFSET = 2  # rows of the table of positions before position 0
NAMES = TensorNames(
    {
        "embed": "model.decoder.embed_tokens",
        "position": "model.decoder.embed_positions",
        "norm": "model.decoder.final_layer_norm",
        "project": "lm_head",
    },
    {
        "attention.q": "self_attn.q_proj",
        "attention.k": "self_attn.k_proj",
        "attention.v": "self_attn.v_proj",
        "attention.output": "self_attn.out_proj",
        "attention.norm": "self_attn_layer_norm",
        "feedforward.up": "fc1",
        "feedforward.down": "fc2",
        "feedforward.norm": "final_layer_norm",
    },
    "model.decoder.layers",
)


def _checked(config: Config, spec: ModelSpec) -> ModelSpec:
    """The models of 350M, with norms after the sums and a narrower embedding, are refused."""
    config.refuse("do_layer_norm_before", True)
    config.refuse("_remove_final_layer_norm", False)
    config.refuse("layer_norm_elementwise_affine", True)
    if (width := config.count("word_embed_proj_dim", spec.embedding.width)) != spec.embedding.width:
        raise UnsupportedModel(
            f"{config.path.name}: word_embed_proj_dim = {width} is not supported: it must be hidden_size"
        )
    return spec


_DECODER = StandardDecoder(
    "opt",
    positions="learned",
    bias=True,
    output_bias=True,
    activation="relu",
    gated=False,
    feedforward_bias=True,
    norm=Norm("layer", 1e-5),
    tied=True,
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
    config_change=_checked,
)


def from_config(checkpoint: Checkpoint, config: Config) -> Model:
    """Read ``config.json``. The table of positions has two rows before position 0."""
    model = _DECODER.from_config(checkpoint, config)
    table = model.sources("position.weight")[0]
    rows = replace(table, rows=(OFFSET, model.spec.context + OFFSET))
    before = replace(table, rows=(0, OFFSET))
    return replace(model, slots={**model.slots, "position.weight": rows}, ignored=(before,))


OPT = replace(_DECODER.family(), safetensors={"opt": from_config})
