"""Top-h: the most likely tokens that hold a share of the entropy (Potraghloo et al. 2025).

As in transformers, only the 100 most likely tokens are considered. In descending order of probability, each token adds
-p log p to a sum. A token stays if the sum is at most ``top_h`` times the entropy of the 100 tokens. The first token
always stays. A token whose probability is 0 in float64 does not stay. (The paper uses the entropy of the tokens that
stay.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pellucid.sample.candidates import Candidates
from pellucid.sample.checking import real
from pellucid.sample.step import SamplerStep, TokenHistory, option
from pellucid.util.probabilities import exponentials

MAX_CANDIDATES = 100


@dataclass(frozen=True)
class TopH(SamplerStep):
    name, order, kind, off = "top_h", 170, "cut", 1

    top_h: float = option(
        1.0,
        real(0, 1, "1 turns it off", above=True),
        "Only the most likely tokens that have this share of the entropy; 1 is off.",
    )

    def apply(self, candidates: Candidates, history: TokenHistory) -> Candidates:
        likeliest = candidates.keep_top(MAX_CANDIDATES)
        logs = likeliest.log_probabilities(likeliest.top(MAX_CANDIDATES))
        probabilities = exponentials(logs)
        shares = -probabilities * np.maximum(logs, -1e300)
        within = (np.cumsum(shares) <= self.top_h * likeliest.sums.entropy) & (probabilities > 0)
        return likeliest.keep_top(max(int(within.sum()), 1))
