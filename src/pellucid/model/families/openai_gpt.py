"""GPT (Radford et al. 2018): like GPT-2, with norms after the residual additions."""

from __future__ import annotations

from msgspec.structs import replace

from pellucid.model.families.gpt2 import DECODER, NAMES
from pellucid.model.standard_decoder import GPT_KEYS

OPENAI_GPT = replace(
    DECODER,
    name="openai-gpt",
    architecture=None,
    activations={"gelu": "gelu_tanh", "relu": "relu", "silu": "silu", "swish": "silu"},
    placement="post",
    final_norm=False,
    keys={**GPT_KEYS, "activation": "afn"},
    unused=(r"(transformer\.)?h\.\d+\.attn\.bias",),
    names=NAMES
    | {"model.embed": "transformer.tokens_embed", "model.position": "transformer.positions_embed"},
).family()
