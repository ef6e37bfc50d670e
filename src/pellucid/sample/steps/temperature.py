"""Temperature: divides the logits by t. t < 1 sharpens the distribution, t > 1 flattens it. 0 means greedy decoding.

With ``dynatemp_range`` r the temperature is t - r + 2 r (H / H_max) ** ``dynatemp_exponent``, where H is the entropy,
and H_max is the logarithm of the number of allowed tokens. This is llama.cpp's dynamic temperature (kalomaze 2023),
except that llama.cpp also counts forbidden tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pellucid.sample.candidates import Candidates
from pellucid.sample.checking import real
from pellucid.sample.step import SamplerStep, TokenHistory, option


@dataclass(frozen=True)
class Temperature(SamplerStep):
    name, order, kind = "temperature", 90, "scale"

    temperature: float = option(
        0.8,
        real(0, 100, "0 is greedy"),
        "0 takes the most likely token; higher values give more varied text.",
    )
    dynatemp_range: float = option(
        0.0,
        real(0, 100, "0 turns it off"),
        "The temperature varies with the entropy by at most this; 0 is off.",
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
