"""StarCoder 2 (Lozhkov et al. 2024): layer norms, biases everywhere, an ungated feed-forward with GELU."""

from __future__ import annotations

from msgspec.structs import replace

from pellucid.model.config import Config
from pellucid.model.spec import ModelSpec
from pellucid.model.standard_decoder import GPT_LIKE
from pellucid.model.tensor_names import TRANSFORMERS


def _from_config(config: Config, spec: ModelSpec) -> ModelSpec:
    # Older files have these keys, and transformers ignores them.
    for key in ("activation_function", "layer_norm_epsilon"):
        config.value(key)
    return spec


STARCODER2 = replace(
    GPT_LIKE,
    name="starcoder2",
    keys={"norm_eps": "norm_epsilon", "bias": "use_bias", "feedforward_bias": "use_bias", "window": "sliding_window"},
    config_change=_from_config,
    names=TRANSFORMERS | {"feedforward.up": "mlp.c_fc", "feedforward.down": "mlp.c_proj"},
).family()
