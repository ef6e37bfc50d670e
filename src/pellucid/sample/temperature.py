"""Temperature: logits / t. Below 1 sharpens the distribution, above 1 flattens it. 0 is greedy, not a division.

The highest logit is subtracted first, which changes no probability and lets t be as small as it likes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pellucid.sample.candidates import Candidates


@dataclass(frozen=True)
class Temperature:
    """``value`` > 0."""

    value: float

    def apply(self, candidates: Candidates) -> Candidates:
        logits = candidates.logits.astype(np.float64)
        with np.errstate(over="ignore"):  # minus infinity is right
            return Candidates(candidates.ids, (logits - logits.max()) / self.value)
