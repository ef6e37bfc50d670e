"""Nemotron and Minitron (Parmar et al. 2024): layer norms with 1 + w, squared ReLU, half of each head rotated."""

from __future__ import annotations

from msgspec.structs import replace

from pellucid.model.spec import Norm
from pellucid.model.standard_decoder import StandardDecoder
from pellucid.model.tensor_names import TRANSFORMERS

NEMOTRON = StandardDecoder(
    "nemotron",
    rotated=0.5,
    activation="relu2",
    gated=False,
    norm=Norm("layer", 1e-5),
    keys={"norm_eps": "norm_eps"},
    names=replace(TRANSFORMERS, norm_plus=1.0),
).family()
