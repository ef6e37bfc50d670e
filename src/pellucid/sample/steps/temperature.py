"""Temperature, and Mirostat, which adapts a cut to the surprise of the text."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from pellucid.sample.candidates import Candidates
from pellucid.sample.checking import real, whole
from pellucid.sample.step import RequestContext, SamplerStep, TokenHistory, option


@dataclass(frozen=True)
class Temperature(SamplerStep):
    """Temperature: divides the logits by t. t < 1 sharpens the distribution, t > 1 flattens it. 0 means greedy
    decoding.

    With ``dynatemp_range`` r the temperature is t - r + 2 r (H / H_max) ** ``dynatemp_exponent``, where H is the
    entropy, and H_max is the logarithm of the number of allowed tokens. This is llama.cpp's dynamic temperature
    (kalomaze 2023), except that llama.cpp also counts forbidden tokens.
    """

    name, order, kind = "temperature", 90, "scale"

    temperature: float = option(
        0.8, real(0, 100, "0 is greedy"), "0 takes the most likely token; higher values give more varied text."
    )
    dynatemp_range: float = option(
        0.0, real(0, 100, "0 turns it off"), "The temperature varies with the entropy by at most this; 0 is off."
    )
    dynatemp_exponent: float = option(1.0, real(0, 100), "The exponent that maps the entropy to the range.")

    @property
    def greedy(self) -> bool:
        """True if the most likely token is taken without a draw."""
        return self.temperature == 0 and self.dynatemp_range == 0

    @property
    def idle(self) -> bool:
        return self.temperature == 1 and self.dynatemp_range == 0

    def apply(self, candidates: Candidates, history: TokenHistory) -> Candidates:
        t = self.temperature
        if self.dynatemp_range:
            low, high = max(t - self.dynatemp_range, 0.0), t + self.dynatemp_range
            most = math.log(max(candidates.allowed, 2))
            t = low + (high - low) * (candidates.sums.entropy / most) ** self.dynatemp_exponent
        if t == 0:
            return candidates.keep_top(1)
        return candidates.at_temperature(t)


@dataclass
class Surprise:
    """The state of one request: ``limit`` is μ, in bits."""

    limit: float


@dataclass(frozen=True)
class Mirostat(SamplerStep):
    """Mirostat 2: a cut-off that keeps the surprise of the text near a target (Basu et al. 2021).

    The surprise of a token is -log2 of its probability. Tokens with a surprise above μ are removed. If all tokens are
    above μ, the most likely token stays (the lowest id on ties). μ begins at 2 τ, where τ is the target. After each
    token, μ is corrected by the token's distance from the target: μ -= η (surprise - τ). Mirostat replaces all other
    steps of kind "cut".
    """

    name, order, kind, off, alone = "mirostat", 190, "cut", 0, True

    mirostat: int = option(
        0,
        whole(0, 2, "0 turns it off, 2 is Mirostat 2"),
        "2 keeps the surprise of tokens near a target (Mirostat 2); 0 is off.",
    )
    mirostat_tau: float = option(5.0, real(0, 100, above=True), "The target of the surprise, in bits.")
    mirostat_eta: float = option(0.1, real(0, 1), "How fast the cut adapts (the learning rate).")
    state: Surprise = field(default_factory=lambda: Surprise(math.inf), compare=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mirostat == 1:
            whole(2, 2, "Mirostat 1 is not implemented; 0 turns it off")("mirostat", 1)

    @property
    def note(self) -> str:
        return f"μ {self.state.limit:.3f} bits"

    def bind(self, context: RequestContext) -> SamplerStep:
        return self._with(2 * self.mirostat_tau)

    def fork(self) -> SamplerStep:
        return self._with(self.state.limit)

    def apply(self, candidates: Candidates, history: TokenHistory) -> Candidates:
        lowest = -self.state.limit * math.log(2) + math.log(candidates.sums.total)
        return candidates.keep_top(1) if lowest > 0 else candidates.keep_above(lowest)

    def accept(self, token: int, probability: float) -> None:
        self.state.limit -= self.mirostat_eta * (-math.log2(probability) - self.mirostat_tau)

    def _with(self, limit: float) -> Mirostat:
        return Mirostat(self.mirostat, self.mirostat_tau, self.mirostat_eta, Surprise(limit))
