"""Top-p, or nucleus: the smallest set of tokens whose probabilities sum to p (Holtzman et al. 2020).

Tokens are taken from the most likely on (of equal ones, the lowest id first) until the sum reaches p; at least one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pellucid.sample.candidates import Candidates

FIRST_LOOK = 256  # so many of the most likely tokens are sorted first; usually they hold p already


@dataclass(frozen=True)
class TopP:
    """0 < ``p`` <= 1."""

    p: float

    def apply(self, candidates: Candidates) -> Candidates:
        if self.p >= 1.0:
            return candidates
        probabilities = candidates.probabilities()
        n, look = len(probabilities), FIRST_LOOK
        places: NDArray[Any]
        while True:
            if look >= n:
                places = np.arange(n)
            else:
                floor = np.partition(probabilities, n - look)[n - look]
                places = np.flatnonzero(probabilities >= floor)
            order = places[np.lexsort((places, -probabilities[places]))]
            sums = np.cumsum(probabilities[order])
            if sums[-1] >= self.p or len(places) == n:
                count = int(np.searchsorted(sums, self.p)) + 1
                return candidates.keep(order[:count])
            look *= 16
