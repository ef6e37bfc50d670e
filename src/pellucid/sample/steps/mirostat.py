"""Mirostat 2: cuts so that the surprise of the text stays near a target (Basu et al. 2021).

Tokens whose surprise, -log2 of their probability, is above μ are cut off; if all are, the likeliest stays, of equal
ones the lowest id. After each token μ moves against the error of its surprise: μ -= η (surprise - τ). It begins at 2 τ.
It stands in for all other steps that cut.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from pellucid.sample.candidates import Candidates
from pellucid.sample.checking import real, whole
from pellucid.sample.step import RequestContext, SamplerStep, TokenHistory, option


@dataclass
class Surprise:
    """What one request remembers."""

    most: float


@dataclass(frozen=True)
class Mirostat(SamplerStep):
    name, order, kind, alone = "mirostat", 190, "cut", True

    mirostat: int = option(
        0, whole(0, 2, "0 turns it off, 2 is Mirostat 2"), "2 keeps the surprise near a target; 0 is off."
    )
    mirostat_tau: float = option(5.0, real(0, 100, above=True), "The surprise that is aimed at, in bits.")
    mirostat_eta: float = option(0.1, real(0, 1), "How fast the cut follows.")
    state: Surprise = field(default_factory=lambda: Surprise(math.inf), compare=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mirostat == 1:
            whole(2, 2, "Mirostat 1 is not implemented; 0 turns it off")("mirostat", 1)

    @property
    def idle(self) -> bool:
        return self.mirostat == 0

    @property
    def note(self) -> str:
        return f"μ {self.state.most:.3f} bits"

    def bind(self, context: RequestContext) -> SamplerStep:
        return self._with(2 * self.mirostat_tau)

    def fork(self) -> SamplerStep:
        return self._with(self.state.most)

    def apply(self, candidates: Candidates, history: TokenHistory) -> Candidates:
        lowest = -self.state.most * math.log(2) + math.log(candidates.sums.total)
        return candidates.keep_top(1) if lowest > 0 else candidates.keep_above(lowest)

    def accept(self, token: int, probability: float) -> None:
        self.state.most -= self.mirostat_eta * (-math.log2(probability) - self.mirostat_tau)

    def _with(self, most: float) -> Mirostat:
        return Mirostat(self.mirostat, self.mirostat_tau, self.mirostat_eta, Surprise(most))
