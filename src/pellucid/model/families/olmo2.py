"""OLMo 2 (OLMo Team 2025): norms of outputs instead of inputs, and norms over all heads of queries and keys.

The architecture in GGUF files of OLMo 3 is also "olmo2". These files have a sliding window. The rotary positions of
sliding layers are not scaled.
"""

from __future__ import annotations

from msgspec.structs import replace

from pellucid.model.common_metadata import except_every, slide
from pellucid.model.config import Config
from pellucid.model.spec import ModelSpec, Norm
from pellucid.model.standard_decoder import StandardDecoder

PATTERN = 4  # every fourth layer has full attention


def _window(config: Config, spec: ModelSpec) -> ModelSpec:
    window = config.amount("attention.sliding_window")
    if not window:
        return spec
    layers, rotary = len(spec.blocks), spec.attention.rotary
    assert rotary is not None
    sliding = config.switches("attention.sliding_window_pattern", layers) or except_every(PATTERN, layers)
    local = config.number("rope.freq_base_swa", rotary.base, low=1.0)
    return slide(spec, sliding, window, rotary=replace(rotary, base=local, scaling=None))


OLMO2 = StandardDecoder(
    "olmo2",
    whole_norm=True,
    placement="output",
    norm=Norm("rms", 1e-5),
    gguf_change=_window,
).family()
