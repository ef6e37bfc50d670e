"""η sampling: a cut-off that falls as the entropy rises, min(ε, √ε · exp(-entropy)) (Hewitt et al. 2022)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pellucid.sample.candidates import Candidates
from pellucid.sample.checking import real
from pellucid.sample.step import SamplerStep, TokenHistory, option


@dataclass(frozen=True)
class Eta(SamplerStep):
    name, order, kind, off = "eta", 160, "cut", 0

    eta_cutoff: float = option(
        0.0,
        real(0, 1, "0 turns it off"),
        "Only tokens above a probability that falls as the entropy rises; 0 is off.",
    )

    def apply(self, candidates: Candidates, history: TokenHistory) -> Candidates:
        sums, bound = candidates.sums, math.log(self.eta_cutoff)
        return candidates.keep_above(min(bound, bound / 2 - sums.entropy) + math.log(sums.total))
