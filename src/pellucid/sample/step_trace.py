"""The effect of a sampler step on a distribution: a comparison of the candidates before and after the step.

The comparison runs only if a trace is requested. It takes a few passes over the vocabulary for each step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pellucid.sample.candidates import Candidates, Floats


@dataclass(frozen=True)
class StepTrace:
    """The effect of one step.

    ``removed`` is the number of tokens that lose all their probability, ``left`` the number of tokens with a
    probability above 0 after the step. ``removed_mass`` is the probability that the removed tokens had. ``moved`` is
    the total variation distance: half the sum of absolute differences of the probabilities. ``entropy_before`` and
    ``entropy_after`` are in nats. ``note`` is the step's own description of its state.
    """

    name: str
    removed: int
    left: int
    removed_mass: float
    moved: float
    entropy_before: float
    entropy_after: float
    note: str = ""


def compare(name: str, before: Candidates, after: Candidates, note: str = "") -> StepTrace:
    """The effect of the step ``name``, from the candidates before and after it."""
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
    """Probabilities by token id, (size,) float64."""
    out = np.zeros(size)
    out[slice(len(candidates)) if candidates.ids is None else candidates.ids] = candidates.probabilities()
    return out
