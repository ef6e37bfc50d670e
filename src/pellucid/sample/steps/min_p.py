"""Min-p: keeps the tokens whose probability is at least a share ``min_p`` of the highest (Nguyen et al. 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pellucid.sample.candidates import Candidates
from pellucid.sample.checking import real
from pellucid.sample.step import SamplerStep, TokenHistory, option


@dataclass(frozen=True)
class MinP(SamplerStep):
    name, order, kind, off = "min_p", 120, "cut", 0

    min_p: float = option(
        0.05,
        real(0, 1, "0 turns it off"),
        "Only tokens of at least this share of the highest probability; 0 is off.",
    )

    def apply(self, candidates: Candidates, history: TokenHistory) -> Candidates:
        return candidates.keep_above(math.log(self.min_p))
