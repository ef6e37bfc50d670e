"""Mixtral (Jiang et al. 2024): Mistral with a mixture of experts. The architecture in GGUF files is "llama"."""

from __future__ import annotations

from pellucid.model.spec import Norm
from pellucid.model.standard_decoder import StandardDecoder
from pellucid.model.standard_mixture import StandardMixture
from pellucid.model.tensor_names import TRANSFORMERS

MIXTRAL = StandardDecoder(
    "mixtral",
    architecture=None,
    base=1_000_000.0,
    norm=Norm("rms", 1e-5),
    mixture=StandardMixture(normalize=True, keys={"width": "", "normalize": ""}),
    keys={"window": "sliding_window"},
    names=TRANSFORMERS
    | {
        "feedforward.router": "block_sparse_moe.gate",
        "feedforward.experts.gate": "block_sparse_moe.experts.{}.w1",
        "feedforward.experts.up": "block_sparse_moe.experts.{}.w3",
        "feedforward.experts.down": "block_sparse_moe.experts.{}.w2",
    },
).family()
