"""Targets: functions of the logits (V,) after the last token of a prompt. Any such function is a target of a sweep.

A gradient needs a target with the method ``gradient``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest
from pellucid.sample.candidates import Candidates
from pellucid.trace.traced_model import OpenedModel, token_of

Logits = NDArray[np.float32]
Target = Callable[[Logits], float]


@dataclass(frozen=True)
class LogitDifference:
    """The logit of token ``first`` minus the logit of token ``second``."""

    first: int
    second: int

    def __call__(self, logits: Logits) -> float:
        return float(logits[self.first]) - float(logits[self.second])

    def gradient(self, logits: Logits) -> NDArray[np.float64]:
        """The derivatives by the logits (V,)."""
        found = np.zeros(len(logits))
        found[self.first] += 1
        found[self.second] -= 1
        return found


@dataclass(frozen=True)
class LogProbability:
    """The logarithm of the probability of ``token``; with ``raised`` the probability itself."""

    token: int
    raised: bool = False

    def __call__(self, logits: Logits) -> float:
        found = float(Candidates.of(logits, "target").log_probabilities(np.array([self.token]))[0])
        return math.exp(found) if self.raised else found

    def gradient(self, logits: Logits) -> NDArray[np.float64]:
        """The derivatives by the logits (V,)."""
        p = Candidates.of(logits, "target").probabilities()
        found = -p
        found[self.token] += 1
        return found * p[self.token] if self.raised else found


class DivergenceFrom:
    """The Kullback-Leibler divergence from the distribution of the logits ``reference`` (V,), in nats."""

    def __init__(self, reference: Logits) -> None:
        own = Candidates.of(np.asarray(reference, np.float32), "reference")
        self._p, self._log_p = own.probabilities(), own.log_probabilities()

    def __call__(self, logits: Logits) -> float:
        own, likely = self._checked(logits), self._p > 0
        difference = self._log_p - own.log_probabilities()
        return math.fsum((self._p[likely] * difference[likely]).tolist())

    def gradient(self, logits: Logits) -> NDArray[np.float64]:
        """The derivatives by the logits (V,)."""
        return self._checked(logits).probabilities() - self._p

    def _checked(self, logits: Logits) -> Candidates:
        if len(logits) != len(self._p):
            raise InvalidRequest(
                f"reference: {len(self._p):,} logits; this model has {len(logits):,}: give its own logits"
            )
        return Candidates.of(logits, "target")


def logit_difference(model: OpenedModel, token: int | str, against: int | str) -> LogitDifference:
    """The logit of ``token`` minus the logit of ``against``; each an id, or the text of a single token."""
    return LogitDifference(token_of(model, token), token_of(model, against))


def log_probability(model: OpenedModel, token: int | str) -> LogProbability:
    """The logarithm of the probability of ``token``."""
    return LogProbability(token_of(model, token))


def probability(model: OpenedModel, token: int | str) -> LogProbability:
    """The probability of ``token``."""
    return LogProbability(token_of(model, token), raised=True)


def divergence(reference: Logits) -> DivergenceFrom:
    """The Kullback-Leibler divergence from the distribution of the logits ``reference`` (V,), in nats."""
    return DivergenceFrom(reference)
