"""XTC, exclude top choices: among tokens above a threshold, only the least likely token stays (Weidmann 2024).

For each token, the step's own random number decides with probability ``xtc_probability`` whether the step applies.
Tokens below the threshold stay as well. The text becomes less predictable, but its tokens stay likely.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pellucid.sample.candidates import Candidates
from pellucid.sample.checking import real
from pellucid.sample.random import XTC, uniform
from pellucid.sample.step import SamplerStep, TokenHistory, option


@dataclass(frozen=True)
class Xtc(SamplerStep):
    name, order, kind = "xtc", 180, "cut"

    xtc_probability: float = option(
        0.0,
        real(0, 1, "0 turns it off"),
        "The probability with which the most likely tokens are removed; 0 is off.",
    )
    xtc_threshold: float = option(
        0.1,
        real(0, 1, "above 0.5 it does nothing"),
        "Of the tokens with at least this probability only the least likely one stays.",
    )

    @property
    def idle(self) -> bool:
        return self.xtc_probability == 0 or self.xtc_threshold > 0.5

    def apply(self, candidates: Candidates, history: TokenHistory) -> Candidates:
        if uniform(history.seed, history.index, XTC) >= self.xtc_probability:
            return candidates
        count = (
            min(len(candidates), int(1 / self.xtc_threshold) + 1)
            if self.xtc_threshold > 1e-9
            else len(candidates)
        )
        positions = candidates.top(count)
        probabilities = candidates.weights_at(positions) / candidates.sums.total
        above = int((probabilities >= self.xtc_threshold).sum())
        if above < 2:
            return candidates
        return candidates.keep(np.setdiff1d(np.arange(len(candidates)), positions[: above - 1]))
