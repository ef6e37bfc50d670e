"""What a step of the chain did to a distribution: two sets of candidates compared.

Costs nothing unless it is asked for; then some passes over the vocabulary for each step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pellucid.sample.candidates import Candidates, Floats


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
