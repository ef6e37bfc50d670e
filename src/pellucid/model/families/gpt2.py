"""GPT-2 (Radford et al. 2019): learned positions, layer norms, biases, matrices stored as (inputs, outputs)."""

from __future__ import annotations

from msgspec.structs import replace

from pellucid.model.config import Config
from pellucid.model.spec import ModelSpec, Norm
from pellucid.model.standard_decoder import GPT_ALIASES, GPT_KEYS, StandardDecoder
from pellucid.model.tensor_names import TensorNames, places

NAMES = TensorNames(
    {
        "model.embed": "transformer.wte",
        "model.position": "transformer.wpe",
        "model.norm": "transformer.ln_f",
        "model.project": "lm_head",
        "attention.q,k,v": "attn.c_attn",
        "attention.output": "attn.c_proj",
        "attention.norm": "ln_1",
        "feedforward.up": "mlp.c_fc",
        "feedforward.down": "mlp.c_proj",
        "feedforward.norm": "ln_2",
    },
    "transformer.h",
    transposed=places("attention.q,k,v,output", "feedforward.up,down"),
)


DECODER = StandardDecoder(
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
    keys=GPT_KEYS,
    aliases=GPT_ALIASES,
    unused=(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",),  # masks
    names=NAMES,
)


def _scores(config: Config, spec: ModelSpec) -> ModelSpec:
    """Set the scale of scores. One option sets it to 1, another option divides it by the number of the layer."""
    scaled = config.flag("scale_attn_weights", True)
    by_layer = config.flag("scale_attn_by_inverse_layer_idx", False)
    return spec.change_attention(
        lambda layer, attention: replace(
            attention, scale=(attention.scale if scaled else 1.0) / (layer + 1 if by_layer else 1)
        )
    )


GPT2 = replace(DECODER, config_change=_scores).family()
