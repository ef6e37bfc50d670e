"""Top-k: only the k most likely tokens stay (Fan et al. 2018). Of equal ones the lowest ids stay."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pellucid.sample.candidates import Candidates


@dataclass(frozen=True)
class TopK:
    """``k`` >= 1."""

    k: int

    def apply(self, candidates: Candidates) -> Candidates:
        logits = candidates.logits
        if self.k >= len(logits):
            return candidates
        threshold = np.partition(logits, len(logits) - self.k)[len(logits) - self.k]
        above = np.flatnonzero(logits > threshold)
        ties = np.flatnonzero(logits == threshold)[: self.k - len(above)]
        return candidates.keep(np.concatenate([above, ties]))
