"""GPT (Radford et al. 2018): learned positions, norms after the sums, matrices stored as (inputs, outputs)."""

from __future__ import annotations

from pellucid.model.family import Family
from pellucid.model.spec import Norm
from pellucid.model.standard_decoder import StandardDecoder
from pellucid.model.tensor_names import TensorNames

NAMES = TensorNames(
    {"embed": "transformer.tokens_embed", "position": "transformer.positions_embed", "project": "lm_head"},
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
_DECODER = StandardDecoder(
    "openai-gpt",
    positions="learned",
    bias=True,
    output_bias=True,
    activation="gelu_tanh",
    activations={"gelu": "gelu_tanh", "relu": "relu", "silu": "silu", "swish": "silu"},
    gated=False,
    feedforward_bias=True,
    widening=4,
    norm=Norm("layer", 1e-5),
    placement="post",
    final_norm=False,
    tied=True,
    keys={
        "context": "n_positions",
        "width": "n_embd",
        "heads": "n_head",
        "kv_heads": "",
        "head_dim": "",
        "feedforward": "n_inner",
        "layers": "n_layer",
        "activation": "afn",
        "norm_eps": "layer_norm_epsilon",
        "bias": "",
        "feedforward_bias": "",
    },
    unused=(r"(transformer\.)?h\.\d+\.attn\.bias",),
    names=NAMES,
)
OPENAI_GPT = Family("openai-gpt", safetensors={"openai-gpt": _DECODER.from_config}, unused=_DECODER.unused)
