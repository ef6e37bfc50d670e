"""Exponentials and probabilities in float64, and of recorded logits in float32."""

from __future__ import annotations

import math

import numpy as np

from pellucid.trace.instrumentation import probabilities_of
from pellucid.util.probabilities import exponentials, softmax


def test_exponentials_are_those_of_math() -> None:
    values = np.array([-math.inf, -745.2, -1.5, 0.0, 1e-9, 709.0])
    assert exponentials(values).tolist() == [math.exp(value) for value in values.tolist()]


def test_recorded_logits_without_a_distribution_have_no_probabilities() -> None:
    logits = np.zeros((2, 3, 40), np.float32)
    logits[0, 0, :39], logits[0, 1, 7], logits[0, 2] = -np.inf, np.nan, -np.inf
    logits[1, 0, 3], logits[1, 1] = np.inf, np.linspace(-9, 9, 40)
    found = probabilities_of(logits)
    assert found[0, 0].tolist() == [0.0] * 39 + [1.0]
    assert [np.isnan(found[at]).all() for at in ((0, 1), (0, 2), (1, 0))] == [True] * 3
    assert np.array_equal(found[1, 1], softmax(logits[1, 1]).astype(np.float32))
    assert (found[1, 2] == np.float32(1 / 40)).all()
