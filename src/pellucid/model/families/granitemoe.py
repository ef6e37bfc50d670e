"""Granite 3 with experts (IBM 2024): Granite with a mixture. Newer models ("shared") also have a shared expert.

One tensor has the gates and up-projections of all experts.
"""

from __future__ import annotations

from msgspec.structs import replace

from pellucid.model.families.granite import scaled_config, scaled_rotary_gguf
from pellucid.model.standard_decoder import StandardDecoder
from pellucid.model.standard_mixture import StandardMixture
from pellucid.model.tensor_names import TRANSFORMERS

GRANITE_EXPERTS = StandardMixture(normalize=True, keys={"width": "", "normalize": ""})
GRANITE_MOE_NAMES = TRANSFORMERS | {
    "feedforward.router": "block_sparse_moe.router.layer",
    "feedforward.experts.gate,up": "block_sparse_moe.input_linear",
    "feedforward.experts.down": "block_sparse_moe.output_linear",
    "feedforward.shared.gate,up": "shared_mlp.input_linear",
    "feedforward.shared.down": "shared_mlp.output_linear",
}
_GRANITE_MOE = StandardDecoder(
    "granitemoe",
    gguf_pairing="interleaved",
    mixture=GRANITE_EXPERTS,
    keys={"feedforward_bias": ""},
    names=GRANITE_MOE_NAMES,
    gguf_change=scaled_rotary_gguf,
    config_change=scaled_config,
)
GRANITE_MOE = _GRANITE_MOE.family()
GRANITE_MOE_SHARED = replace(
    _GRANITE_MOE,
    name="granitemoeshared",
    architecture=None,
    mixture=replace(
        GRANITE_EXPERTS, keys={**GRANITE_EXPERTS.keys, "shared_width": "shared_intermediate_size"}
    ),
).family()
