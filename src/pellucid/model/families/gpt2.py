"""GPT-2 (Radford et al. 2019): learned positions, layer norms, biases, matrices stored as (inputs, outputs)."""

from __future__ import annotations

from dataclasses import replace

from pellucid.model.config import Config
from pellucid.model.spec import ModelSpec, Norm
from pellucid.model.standard_decoder import StandardDecoder
from pellucid.model.tensor_names import TensorNames

NAMES = TensorNames(
    {
        "embed": "transformer.wte",
        "position": "transformer.wpe",
        "norm": "transformer.ln_f",
        "project": "lm_head",
    },
    {
        "attention.q": "attn.c_attn",
        "attention.k": "attn.c_attn",
        "attention.v": "attn.c_attn",
        "attention.output": "attn.c_proj",
        "attention.norm": "ln_1",
        "feedforward.up": "mlp.c_fc",
        "feedforward.down": "mlp.c_proj",
        "feedforward.norm": "ln_2",
    },
    "transformer.h",
    transposed=frozenset(
        {
            "attention.q",
            "attention.k",
            "attention.v",
            "attention.output",
            "feedforward.up",
            "feedforward.down",
        }
    ),
)


def _scores(config: Config, spec: ModelSpec) -> ModelSpec:
    """Two switches of the scores' scale."""
    scaled = config.flag("scale_attn_weights", True)
    by_layer = config.flag("scale_attn_by_inverse_layer_idx", False)
    return replace(
        spec,
        blocks=tuple(
            replace(
                block,
                attention=replace(
                    block.attention,
                    scale=(block.attention.scale if scaled else 1.0) / (layer + 1 if by_layer else 1),
                ),
            )
            for layer, block in enumerate(spec.blocks)
        ),
    )


GPT2 = StandardDecoder(
    "gpt2",
    positions="learned",
    bias=True,
    output_bias=True,
    activation="gelu_tanh",
    gated=False,
    feedforward_bias=True,
    widening=4,
    norm=Norm("layer", 1e-5),
    tied=True,
    keys={
        "context": "n_positions",
        "width": "n_embd",
        "heads": "n_head",
        "kv_heads": "",
        "head_dim": "",
        "feedforward": "n_inner",
        "layers": "n_layer",
        "activation": "activation_function",
        "norm_eps": "layer_norm_epsilon",
        "bias": "",
        "feedforward_bias": "",
    },
    unused=(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",),  # masks
    names=NAMES,
    config_change=_scores,
).family()
