"""Top-p, or nucleus: the smallest set of tokens whose probabilities sum to p (Holtzman et al. 2020).

Tokens are taken in descending order of probability (the lowest id first on ties) until their sum reaches p. At least
one token stays.
"""

from __future__ import annotations

from dataclasses import dataclass

from pellucid.sample.candidates import Candidates
from pellucid.sample.checking import real
from pellucid.sample.step import SamplerStep, TokenHistory, option


@dataclass(frozen=True)
class TopP(SamplerStep):
    name, order, kind, off = "top_p", 110, "cut", 1

    top_p: float = option(
        0.95,
        real(0, 1, "1 turns it off"),
        "Only the most likely tokens whose probabilities sum to this; 1 is off.",
    )

    def apply(self, candidates: Candidates, history: TokenHistory) -> Candidates:
        return candidates.keep_likeliest(self.top_p)
