"""SmolLM3 (Hugging Face 2025): like Llama, without positions in every fourth layer."""

from __future__ import annotations

from msgspec.structs import replace

from pellucid.model.config import Config
from pellucid.model.sliding_windows import except_every, switched_windows
from pellucid.model.spec import ModelSpec
from pellucid.model.standard_decoder import StandardDecoder

INTERVAL = 4


def _without_positions(spec: ModelSpec, rotated: list[bool]) -> ModelSpec:
    return spec.change_attention(
        lambda layer, attention: attention if rotated[layer] else replace(attention, rotary=None)
    )


def _from_gguf(config: Config, spec: ModelSpec) -> ModelSpec:
    return _without_positions(spec, except_every(INTERVAL, len(spec.blocks)))


def _from_config(config: Config, spec: ModelSpec) -> ModelSpec:
    """Read ``no_rope_layers``, a list with 1 for each layer with positions and 0 for each layer without."""
    layers = len(spec.blocks)
    interval = config.count("no_rope_layer_interval", INTERVAL)
    rotated = config.flags("no_rope_layers", layers) or except_every(interval, layers)
    return switched_windows(config, _without_positions(spec, rotated), lambda layer: not rotated[layer])


SMOLLM3 = StandardDecoder(
    "smollm3",
    gguf_pairing="interleaved",
    base=2_000_000.0,
    tied=True,
    gguf_change=_from_gguf,
    config_change=_from_config,
).family()
