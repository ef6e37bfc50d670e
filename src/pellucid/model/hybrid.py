"""Shared parts of readers of models with recurrent layers: types of layers, dimensions and tensor names of Mamba-2."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from pellucid.model.config import Config
from pellucid.model.spec import Mamba, ModelSpec, Norm, Recurrent
from pellucid.model.tensor_names import TensorNames, places

KINDS = {"linear_attention": True, "mamba": True, "conv": True, "full_attention": False, "attention": False}
"""Names in ``layer_types`` → True for recurrent layers. Older and newer configurations use different names."""


def layer_types(config: Config, key: str, layers: int) -> list[bool] | None:
    """For each layer, True if it is recurrent, from a list of names; None if the key is absent."""
    return config.choices(key, KINDS, layers)


def mixed(spec: ModelSpec, recurrent: Recurrent, where: Sequence[bool]) -> ModelSpec:
    """Replace attention by a recurrent layer in the blocks that ``where`` selects."""
    return replace(
        spec,
        blocks=tuple(
            replace(block, attention=None, recurrent=recurrent) if here else block
            for block, here in zip(spec.blocks, where, strict=True)
        ),
    )


def beside(spec: ModelSpec, recurrent: Recurrent) -> ModelSpec:
    """Add a recurrent layer beside the attention of every block."""
    return spec.with_blocks(recurrent=recurrent)


def gguf_recurrent(config: Config, layers: int) -> list[bool]:
    """For each layer, True if it has no key/value heads and is therefore recurrent."""
    return [not heads for heads in config.by_layer("attention.head_count_kv", layers)]


def gguf_mamba(config: Config, norm: Norm | None) -> Mamba:
    """The dimensions of Mamba-2, from the GGUF keys of an architecture."""
    heads = config.divisor("ssm.time_step_rank", "ssm.inner_size")
    return Mamba(
        heads=heads,
        head_dim=config.count("ssm.inner_size") // heads,
        groups=config.divisor("ssm.group_count", "ssm.time_step_rank"),
        state=config.count("ssm.state_size"),
        taps=config.count("ssm.conv_kernel", limit=MAX_TAPS),
        norm=norm,
    )


MAX_TAPS = 64
"""Maximum number of taps of a convolution. Published models have 3 or 4. The kernel's time grows with the number."""

SHAPE_KEYS: Mapping[str, str] = {
    "state_heads": "mamba_n_heads",
    "state_value": "mamba_d_head",
    "state_groups": "mamba_n_groups",
    "state_dim": "mamba_d_state",
    "taps": "mamba_d_conv",
    "pattern": "layer_types",
}
"""The keys of most Mamba-2 models in config.json, by the names of the dimensions in `pellucid.testing`."""


def config_mamba(
    config: Config,
    norm: Norm | None,
    keys: Mapping[str, str] = SHAPE_KEYS,
    *,
    inner: str = "",
    expand: str = "mamba_expand",
    conv_bias: str = "mamba_conv_bias",
    bias: str = "mamba_proj_bias",
    output_bias: str = "mamba_proj_bias",
) -> Mamba:
    """The dimensions of Mamba-2, from ``config.json``. ``keys`` maps names of dimensions to keys of the file.

    ``inner``, ``expand`` and the three bias arguments are also keys. The value of ``inner`` is the inner width, which
    is the width of all heads together. If the file does not have this key, the inner width is the model width times the
    value of ``expand``.
    """
    heads_key, head_dim_key = keys["state_heads"], keys["state_value"]
    heads, width = config.count(heads_key), 0
    if inner and config.has(inner):
        width = config.count(inner)
    elif expand:
        width = config.count(expand) * config.count("hidden_size")
    automatic = width and config.value(head_dim_key) in (None, "auto")
    head_dim = width // heads if automatic else config.count(head_dim_key)
    if width and head_dim * heads != width:
        raise config.error(
            heads_key, f"is {heads} and a head has {head_dim} values; the product must be the inner width, {width:,}"
        )
    return Mamba(
        heads=heads,
        head_dim=head_dim,
        groups=config.divisor(keys["state_groups"], heads_key),
        state=config.count(keys["state_dim"]),
        taps=config.count(keys["taps"], limit=MAX_TAPS),
        norm=norm,
        conv_bias=config.flag(conv_bias, True),
        bias=config.flag(bias, False),
        output_bias=config.flag(output_bias, False),
        limits=_limits(config),
    )


def _limits(config: Config) -> tuple[float, float]:
    low, high = config.number_tuple("time_step_limit", (0.0, math.inf))
    if low > high:
        raise config.error("time_step_limit", f"is {low:g} to {high:g}: the first must not be above the second")
    return low, high


def with_mamba(names: TensorNames, module: str) -> TensorNames:
    """Add the names of Mamba-2's tensors in transformers. ``module`` is their prefix."""
    mamba = names | {
        "recurrent.gate,x,b,c,step": f"{module}.in_proj",
        "recurrent.x_conv,b_conv,c_conv": f"{module}.conv1d",
        "recurrent.rate.weight": f"{module}.A_log",
        "recurrent.rate.bias": f"{module}.dt_bias",
        "recurrent.skip.weight": f"{module}.D",
        "recurrent.output_norm": f"{module}.norm",
        "recurrent.output": f"{module}.out_proj",
    }
    return replace(mamba, log_rates=True)


def with_gguf_mamba(names: TensorNames) -> TensorNames:
    """Add the names of Mamba-2's tensors in llama.cpp."""
    mamba = names | {
        "recurrent.gate,x,b,c,step": "ssm_in",
        "recurrent.x_conv,b_conv,c_conv": "ssm_conv1d",
        "recurrent.rate.weight": "ssm_a",
        "recurrent.rate.bias": "ssm_dt.bias",
        "recurrent.skip.weight": "ssm_d",
        "recurrent.output_norm": "ssm_norm",
        "recurrent.output": "ssm_out",
        "recurrent.norm": "attn_norm",
    }
    return replace(mamba, flat=places("recurrent.rate,skip,output_norm"))
