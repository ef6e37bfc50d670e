"""Temperature: logits / t. Below 1 sharpens the distribution, above 1 flattens it. 0 is greedy, not a division."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pellucid.sample.candidates import Candidates


@dataclass(frozen=True)
class Temperature:
    """``value`` > 0."""

    value: float

    def apply(self, candidates: Candidates) -> Candidates:
        return Candidates(candidates.ids, candidates.logits.astype(np.float64) / self.value)
