"""Temperature, Mirostat, and steps that keep some of the likely tokens: top-k, top-p, min-p, XTC and others."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from pellucid.sample.candidates import Candidates, fewest, lowest
from pellucid.sample.chain import XTC, uniform
from pellucid.sample.checking import real, whole
from pellucid.sample.step import RequestContext, SamplerStep, TokenHistory, option
from pellucid.util.probabilities import exponentials


@dataclass(frozen=True)
class TopK(SamplerStep):
    """Top-k: only the k most likely tokens stay (Fan et al. 2018). On ties the lowest ids stay."""

    name, order, kind, off = "top_k", 100, "cut", 0

    top_k: int = option(40, whole(0, 1 << 31, "0 turns it off"), "Only the N most likely tokens; 0 is off.")

    def apply(self, candidates: Candidates, history: TokenHistory) -> Candidates:
        return candidates.keep_top(self.top_k)


@dataclass(frozen=True)
class TopP(SamplerStep):
    """Top-p, or nucleus: the smallest set of tokens whose probabilities sum to p (Holtzman et al. 2020).

    Tokens are taken in descending order of probability (the lowest id first on ties) until their sum reaches p. At
    least one token stays.
    """

    name, order, kind, off = "top_p", 110, "cut", 1

    top_p: float = option(
        0.95, real(0, 1, "1 turns it off"), "Only the most likely tokens whose probabilities sum to this; 1 is off."
    )

    def apply(self, candidates: Candidates, history: TokenHistory) -> Candidates:
        return candidates.keep_likeliest(self.top_p)


@dataclass(frozen=True)
class MinP(SamplerStep):
    """Min-p: keeps the tokens whose probability is at least a share ``min_p`` of the highest (Nguyen et al. 2024)."""

    name, order, kind, off = "min_p", 120, "cut", 0

    min_p: float = option(
        0.05, real(0, 1, "0 turns it off"), "Only tokens of at least this share of the highest probability; 0 is off."
    )

    def apply(self, candidates: Candidates, history: TokenHistory) -> Candidates:
        return candidates.keep_above(math.log(self.min_p))


@dataclass(frozen=True)
class Typical(SamplerStep):
    """Locally typical sampling: the most typical tokens whose probabilities sum to p (Meister et al. 2023).

    The surprise of a token is -log of its probability; the expected surprise is the entropy. Tokens are taken in order
    of the distance between surprise and entropy (the lowest id first on ties). At least one token stays.
    """

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


@dataclass(frozen=True)
class Epsilon(SamplerStep):
    """ε cut-off: keeps the tokens with at least the probability ε, and the most likely token (Hewitt et al. 2022)."""

    name, order, kind, off = "epsilon", 150, "cut", 0

    epsilon_cutoff: float = option(
        0.0,
        real(0, 1, "0 turns it off"),
        "Only tokens of at least this probability, and the most likely one; 0 is off.",
    )

    def apply(self, candidates: Candidates, history: TokenHistory) -> Candidates:
        return candidates.keep_above(math.log(self.epsilon_cutoff) + math.log(candidates.sums.total))


@dataclass(frozen=True)
class Eta(SamplerStep):
    """η sampling: a cut-off that falls as the entropy rises, min(ε, √ε · exp(-entropy)) (Hewitt et al. 2022)."""

    name, order, kind, off = "eta", 160, "cut", 0

    eta_cutoff: float = option(
        0.0, real(0, 1, "0 turns it off"), "Only tokens above a probability that falls as the entropy rises; 0 is off."
    )

    def apply(self, candidates: Candidates, history: TokenHistory) -> Candidates:
        sums, bound = candidates.sums, math.log(self.eta_cutoff)
        return candidates.keep_above(min(bound, bound / 2 - sums.entropy) + math.log(sums.total))


MAX_CANDIDATES = 100


@dataclass(frozen=True)
class TopH(SamplerStep):
    """Top-h: the most likely tokens that hold a share of the entropy (Potraghloo et al. 2025).

    As in transformers, only the 100 most likely tokens are considered. In descending order of probability, each token
    adds -p log p to a sum. A token stays if the sum is at most ``top_h`` times the entropy of the 100 tokens. The first
    token always stays. A token whose probability is 0 in float64 does not stay. (The paper uses the entropy of the
    tokens that stay.)
    """

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


@dataclass(frozen=True)
class TopNSigma(SamplerStep):
    """Top-nσ: only tokens whose logit is within n standard deviations of the highest logit (Tang et al. 2024).

    The standard deviation is over the logits of all tokens that are not forbidden. The temperature does not change the
    tokens that stay.
    """

    name, order, kind, off = "top_n_sigma", 140, "cut", 0

    top_n_sigma: float = option(
        0.0,
        real(0, 1000, "0 turns it off"),
        "Only logits within this many standard deviations of the highest; 0 is off.",
    )

    def apply(self, candidates: Candidates, history: TokenHistory) -> Candidates:
        return candidates.keep_above(-self.top_n_sigma * candidates.deviation)


@dataclass(frozen=True)
class Xtc(SamplerStep):
    """XTC, exclude top choices: among tokens above a threshold, only the least likely token stays (Weidmann 2024).

    For each token, the step's own random number decides with probability ``xtc_probability`` whether the step applies.
    Tokens below the threshold stay as well. The text becomes less predictable, but its tokens stay likely.
    """

    name, order, kind = "xtc", 180, "cut"

    xtc_probability: float = option(
        0.0, real(0, 1, "0 turns it off"), "The probability with which the most likely tokens are removed; 0 is off."
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
        count = min(len(candidates), int(1 / self.xtc_threshold) + 1) if self.xtc_threshold > 1e-9 else len(candidates)
        positions = candidates.top(count)
        probabilities = candidates.weights_at(positions) / candidates.sums.total
        above = int((probabilities >= self.xtc_threshold).sum())
        if above < 2:
            return candidates
        return candidates.keep(np.setdiff1d(np.arange(len(candidates)), positions[: above - 1]))


# Temperature, and Mirostat, which adapts a cut to the surprise of the text.


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
