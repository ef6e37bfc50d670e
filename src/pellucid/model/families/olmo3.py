"""OLMo 3 (OLMo Team 2025): OLMo 2 with sliding windows, without rotary scaling, in three of four layers."""

from __future__ import annotations

from msgspec.structs import replace

from pellucid.model.common_metadata import except_every, rope_parameters, slide, sliding_layers
from pellucid.model.config import Config
from pellucid.model.spec import ModelSpec, Norm
from pellucid.model.standard_decoder import StandardDecoder

BASE = 500_000.0
PATTERN = 4  # every fourth layer has full attention


def _from_config(config: Config, spec: ModelSpec) -> ModelSpec:
    rotary = spec.attention.rotary
    assert rotary is not None
    base, scaling = rope_parameters(config, "full_attention", default=BASE)
    local, local_scaling = rope_parameters(config, "sliding_attention", default=BASE)
    return slide(
        spec.with_attention(rotary=replace(rotary, base=base, scaling=scaling)),
        sliding_layers(config, except_every(PATTERN, len(spec.blocks))),
        config.count("sliding_window"),
        rotary=replace(rotary, base=local, scaling=local_scaling),
    )


OLMO3 = StandardDecoder(
    "olmo3",
    architecture=None,  # "olmo2" in GGUF files
    whole_norm=True,
    placement="output",
    norm=Norm("rms", 1e-5),
    config_change=_from_config,
).family()
