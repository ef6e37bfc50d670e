"""Top-nσ: only tokens whose logit is within n standard deviations of the highest logit (Tang et al. 2024).

The standard deviation is over the logits of all tokens that are not forbidden. The temperature does not change the
tokens that stay.
"""

from __future__ import annotations

from dataclasses import dataclass

from pellucid.sample.candidates import Candidates
from pellucid.sample.checking import real
from pellucid.sample.step import SamplerStep, TokenHistory, option


@dataclass(frozen=True)
class TopNSigma(SamplerStep):
    name, order, kind, off = "top_n_sigma", 140, "cut", 0

    top_n_sigma: float = option(
        0.0,
        real(0, 1000, "0 turns it off"),
        "Only logits within this many standard deviations of the highest; 0 is off.",
    )

    def apply(self, candidates: Candidates, history: TokenHistory) -> Candidates:
        return candidates.keep_above(-self.top_n_sigma * candidates.deviation)
