"""Steps that keep some of the likely tokens: top-k, top-p, min-p, typical, epsilon, eta, top-h, top-n-sigma, XTC."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pellucid.sample.candidates import Candidates, fewest, lowest
from pellucid.sample.chain import XTC, uniform
from pellucid.sample.checking import real, whole
from pellucid.sample.step import SamplerStep, TokenHistory, option
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
