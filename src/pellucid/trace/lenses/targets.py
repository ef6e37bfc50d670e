"""Targets of sweeps: functions of the logits (V,) after the last token of a prompt. Any such function is a target."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pellucid.errors import InvalidRequest
from pellucid.sample.candidates import Candidates
from pellucid.trace.traced_model import OpenedModel, token_of

Logits = NDArray[np.float32]
Target = Callable[[Logits], float]


def logit_difference(model: OpenedModel, token: int | str, against: int | str) -> Target:
    """The logit of ``token`` minus the logit of ``against``; each an id, or the text of a single token."""
    first, second = token_of(model, token), token_of(model, against)
    return lambda logits: float(logits[first]) - float(logits[second])


def log_probability(model: OpenedModel, token: int | str) -> Target:
    """The logarithm of the probability of ``token``."""
    chosen = np.array([token_of(model, token)])
    return lambda logits: float(Candidates.of(logits, "target").log_probabilities(chosen)[0])


def probability(model: OpenedModel, token: int | str) -> Target:
    """The probability of ``token``."""
    of_token = log_probability(model, token)
    return lambda logits: math.exp(of_token(logits))


def divergence(reference: Logits) -> Target:
    """The Kullback-Leibler divergence from the distribution of the logits ``reference`` (V,), in nats."""
    own = Candidates.of(np.asarray(reference, np.float32), "reference")
    p, log_p = own.probabilities(), own.log_probabilities()
    likely = p > 0

    def from_reference(logits: Logits) -> float:
        if len(logits) != len(p):
            raise InvalidRequest(
                f"reference: {len(p):,} logits; this model has {len(logits):,}: give its own logits"
            )
        difference = log_p - Candidates.of(logits, "target").log_probabilities()
        return math.fsum((p[likely] * difference[likely]).tolist())

    return from_reference
