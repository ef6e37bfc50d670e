"""The record of a token's choice: its rank in the model's distribution, and the effect of each step of the chain."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pellucid.sample.chain import Draw
from pellucid.sample.logprobs import of_token
from pellucid.sample.step_trace import StepTrace
from pellucid.util.probabilities import exponentials


@dataclass(frozen=True)
class TokenTrace:
    """The choice of a token: the effects of the chain's ``steps``, and the random ``number`` (None: greedy).

    ``entropy`` is the entropy of the model's distribution in nats. ``probability`` and ``rank`` (1 is the most likely)
    are the token's values in the model's distribution, ``final_probability`` and ``final_rank`` its values after the
    chain.
    """

    token: int
    entropy: float
    probability: float
    rank: int
    steps: tuple[StepTrace, ...]
    final_probability: float
    final_rank: int
    number: float | None


def of_draw(draw: Draw) -> TokenTrace:
    """The trace of one draw of a sampler."""
    before = of_token(draw.logits, draw.token, 0, draw.vocabulary)
    after = of_token(draw.candidates, draw.token, 0, draw.vocabulary)
    return TokenTrace(
        draw.token,
        draw.logits.sums.entropy,
        math.exp(before.chosen),
        before.rank,
        draw.traces or (),
        math.exp(after.chosen),
        after.rank,
        draw.number,
    )


def likeliest(draw: Draw, top: int) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """The ``top`` most likely tokens and the chosen token: ids, and probabilities in the model and after the chain."""
    ids = draw.logits.first(draw.vocabulary).top(top).tolist()
    ids = np.array(ids if draw.token in ids else [*ids, draw.token])
    return (
        ids,
        exponentials(draw.logits.log_probabilities(ids)),
        exponentials(draw.final_log_probabilities(ids)),
    )
