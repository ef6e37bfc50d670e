"""OLMo 2 and OLMoE (OLMo Team 2025; Muennighoff et al. 2024)."""

from __future__ import annotations

from msgspec.structs import replace

from pellucid.model.config import Config
from pellucid.model.metadata import GGUF_WINDOW, SlidingWindows
from pellucid.model.spec import ModelSpec, Norm
from pellucid.model.standard_decoder import StandardDecoder
from pellucid.model.standard_mixture import StandardMixture

# OLMo 2 (OLMo Team 2025): norms of outputs instead of inputs, and norms over all heads of queries and keys.
#
# OLMo 3 (OLMo Team 2025) has sliding windows in three of four layers. The rotary positions of these layers are not
# scaled. In GGUF files, both models have the architecture "olmo2". Only files of OLMo 3 have the metadata key for the
# size of the window.

WINDOWS = SlidingWindows(period=4, own_positions=True)


def _from_gguf(config: Config, spec: ModelSpec) -> ModelSpec:
    return WINDOWS.from_gguf(config, spec) if config.optional_count(GGUF_WINDOW) else spec


_OLMO2 = StandardDecoder("olmo2", whole_norm=True, placement="output", norm=Norm("rms", 1e-5), gguf_change=_from_gguf)
OLMO2 = _OLMO2.family()
OLMO3 = replace(_OLMO2, name="olmo3", architecture=None, base=500_000.0, windows=WINDOWS).family()


# OLMoE (Muennighoff et al. 2024): Llama with norms over all heads of queries and keys, and a mixture of experts.

OLMOE = StandardDecoder(
    "olmoe",
    whole_norm=True,
    norm=Norm("rms", 1e-5),
    mixture=StandardMixture(keys={"width": ""}),
    keys={"bias": "attention_bias"},
).family()
