"""StarCoder 2 (Lozhkov et al. 2024): layer norms, biases everywhere, a plain feed-forward with a GELU."""

from __future__ import annotations

from dataclasses import replace

from pellucid.model.common_metadata import sliding_blocks
from pellucid.model.config import Config
from pellucid.model.spec import ModelSpec, Norm
from pellucid.model.standard_decoder import StandardDecoder
from pellucid.model.tensor_names import TRANSFORMERS


def _window(config: Config, spec: ModelSpec) -> ModelSpec:
    """One key says whether there are biases, another may give all layers a window."""
    window = config.window("sliding_window")
    blocks = sliding_blocks(spec.blocks, [True] * len(spec.blocks), window)
    return replace(
        spec,
        blocks=tuple(
            replace(block, attention=replace(block.attention, output_bias=block.attention.bias))
            for block in blocks
        ),
    )


STARCODER2 = StandardDecoder(
    "starcoder2",
    activation="gelu_tanh",
    gated=False,
    norm=Norm("layer", 1e-5),
    tied=True,
    keys={"norm_eps": "norm_epsilon", "bias": "use_bias", "feedforward_bias": "use_bias"},
    names=TRANSFORMERS.with_names(feedforward__up="mlp.c_fc", feedforward__down="mlp.c_proj"),
    config_change=_window,
    bias=True,
    feedforward_bias=True,
).family()
