"""Locally typical sampling: the most typical tokens whose probabilities sum to p (Meister et al. 2023).

The surprise of a token is -log of its probability; the expected surprise is the entropy. Tokens are taken in order of
the distance between surprise and entropy (the lowest id first on ties). At least one token stays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pellucid.sample.candidates import Candidates, fewest, lowest
from pellucid.sample.checking import real
from pellucid.sample.step import SamplerStep, TokenHistory, option


@dataclass(frozen=True)
class Typical(SamplerStep):
    name, order, kind, off = "typical", 130, "cut", 1

    typical_p: float = option(
        1.0,
        real(0, 1, "1 turns it off", above=True),
        "Only the most typical tokens whose probabilities sum to this; 1 is off.",
    )

    def apply(self, candidates: Candidates, history: TokenHistory) -> Candidates:
        far = np.abs(candidates.log_probabilities() + candidates.sums.entropy)
        mass = self.typical_p * candidates.sums.total
        return candidates.keep(fewest(lambda k: lowest(far, k), candidates.weights_at, len(candidates), mass))
