"""GPT-J (Wang and Komatsuzaki 2021): attention and feed-forward beside each other behind one layer norm."""

from __future__ import annotations

from dataclasses import replace

from pellucid.model.config import Config
from pellucid.model.family import Family
from pellucid.model.spec import ModelSpec, Norm
from pellucid.model.standard_decoder import StandardDecoder
from pellucid.model.tensor_names import TensorNames

NAMES = TensorNames(
    {"embed": "transformer.wte", "norm": "transformer.ln_f", "project": "lm_head"},
    {
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


def _rotated(config: Config, spec: ModelSpec) -> ModelSpec:
    """``rotary_dim`` is how many of a head's values are rotated."""
    head_dim = spec.blocks[0].attention.head_dim
    dims = config.count("rotary_dim", head_dim, limit=head_dim)
    blocks = []
    for block in spec.blocks:
        assert block.attention.rotary is not None
        rotary = replace(block.attention.rotary, dims=dims)
        blocks.append(replace(block, attention=replace(block.attention, rotary=rotary)))
    return replace(spec, blocks=tuple(blocks))


_DECODER = StandardDecoder(
    "gptj",
    pairing="interleaved",
    activation="gelu_tanh",
    gated=False,
    feedforward_bias=True,
    widening=4,
    norm=Norm("layer", 1e-5),
    placement="shared",
    head_bias=True,
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
    unused=(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",),
    names=NAMES,
    config_change=_rotated,
)
GPTJ = Family("gptj", safetensors={"gptj": _DECODER.from_config}, unused=_DECODER.unused)
