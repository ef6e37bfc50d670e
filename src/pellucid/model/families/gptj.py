"""GPT-J (Wang and Komatsuzaki 2021): parallel attention and feed-forward with one layer norm."""

from __future__ import annotations

from msgspec.structs import replace

from pellucid.model.config import Config
from pellucid.model.rotary_metadata import even
from pellucid.model.spec import ModelSpec, Norm
from pellucid.model.standard_decoder import GPT_ALIASES, GPT_KEYS, StandardDecoder
from pellucid.model.tensor_names import TensorNames

NAMES = TensorNames(
    {
        "model.embed": "transformer.wte",
        "model.norm": "transformer.ln_f",
        "model.project": "lm_head",
        "attention.q": "attn.q_proj",
        "attention.k": "attn.k_proj",
        "attention.v": "attn.v_proj",
        "attention.output": "attn.out_proj",
        "attention.norm": "ln_1",
        "feedforward.up": "mlp.fc_in",
        "feedforward.down": "mlp.fc_out",
    },
    "transformer.h",
)


ROTATED = 64  # default number of rotated values of a head


def _rotated(config: Config, spec: ModelSpec) -> ModelSpec:
    """Set the number of rotated values of a head from ``rotary_dim``."""
    attention = spec.attention
    assert attention.rotary is not None
    usual = attention.head_dim if config.is_present("rotary_dim") else min(ROTATED, attention.head_dim)
    dims = even(config, "rotary_dim", config.count("rotary_dim", usual, limit=attention.head_dim))
    return spec.with_attention(rotary=replace(attention.rotary, dims=dims))


GPTJ = StandardDecoder(
    "gptj",
    architecture=None,
    pairing="interleaved",
    activation="gelu_tanh",
    gated=False,
    feedforward_bias=True,
    widening=4,
    norm=Norm("layer", 1e-5),
    placement="shared",
    head_bias=True,
    keys=GPT_KEYS,
    aliases=GPT_ALIASES,
    unused=(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",),
    names=NAMES,
    config_change=_rotated,
).family()
