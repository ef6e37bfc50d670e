"""ε cut-off: keeps the tokens with at least the probability ε, and the most likely token (Hewitt et al. 2022)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pellucid.sample.candidates import Candidates
from pellucid.sample.checking import real
from pellucid.sample.step import SamplerStep, TokenHistory, option


@dataclass(frozen=True)
class Epsilon(SamplerStep):
    name, order, kind, off = "epsilon", 150, "cut", 0

    epsilon_cutoff: float = option(
        0.0,
        real(0, 1, "0 turns it off"),
        "Only tokens of at least this probability, and the most likely one; 0 is off.",
    )

    def apply(self, candidates: Candidates, history: TokenHistory) -> Candidates:
        return candidates.keep_above(math.log(self.epsilon_cutoff) + math.log(candidates.sums.total))
