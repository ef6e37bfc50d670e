"""What the steps of a chain did to a distribution, as data.

Costs nothing unless it is asked for; then some passes over the vocabulary for each step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pellucid.sample.candidates import Candidates, Floats
from pellucid.sample.logprobs import of_token

if TYPE_CHECKING:
    from pellucid.sample.chain import Draw


@dataclass(frozen=True)
class StepTrace:
    """One step: ``name``; how many tokens it ``removed`` and how many are ``left``, those that have a probability;
    ``removed_mass``, the probability that they had; ``moved``, how much probability is elsewhere than before in all
    (half the sum of differences: total variation); the ``entropy_before`` and ``entropy_after`` in nats; ``note`` is
    what the step says of itself.
    """

    name: str
    removed: int
    left: int
    removed_mass: float
    moved: float
    entropy_before: float
    entropy_after: float
    note: str = ""


@dataclass(frozen=True)
class TokenTrace:
    """How a token came about: ``steps`` of the chain, ``number`` drawn (None: greedy).

    ``probability`` and ``rank`` (1 is the likeliest) are its own in the model's distribution, whose ``entropy`` is in
    nats; ``final_probability`` and ``final_rank`` after the chain.
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
    """What a sampler's turn shows."""
    before = of_token(draw.logits, draw.token, 0, draw.vocabulary)
    after = of_token(draw.candidates, draw.token, 0, draw.vocabulary)
    return TokenTrace(
        draw.token,
        draw.logits.sums.entropy,
        math.exp(before.chosen),
        before.rank,
        draw.steps or (),
        math.exp(after.chosen),
        after.rank,
        draw.number,
    )


def compare(name: str, before: Candidates, after: Candidates, note: str = "") -> StepTrace:
    """What a step did."""
    size = len(before) if before.ids is None else int(before.ids.max()) + 1
    p, q = spread(before, size), spread(after, size)
    gone = (p > 0) & (q == 0)
    return StepTrace(
        name,
        removed=int(gone.sum()),
        left=int((q > 0).sum()),
        removed_mass=float(p[gone].sum()),
        moved=float(np.abs(p - q).sum() / 2),
        entropy_before=before.sums.entropy,
        entropy_after=after.sums.entropy,
        note=note,
    )


def spread(candidates: Candidates, size: int) -> Floats:
    """Probabilities by token, (size,)."""
    out = np.zeros(size)
    out[slice(len(candidates)) if candidates.ids is None else candidates.ids] = candidates.probabilities()
    return out
