"""OLMoE (Muennighoff et al. 2024): Llama with norms over all heads of queries and keys, and a mixture of experts."""

from __future__ import annotations

from pellucid.model.spec import Norm
from pellucid.model.standard_decoder import StandardDecoder
from pellucid.model.standard_mixture import StandardMixture

OLMOE = StandardDecoder(
    "olmoe",
    whole_norm=True,
    norm=Norm("rms", 1e-5),
    mixture=StandardMixture(keys={"width": ""}),
    keys={"bias": "attention_bias"},
).family()
