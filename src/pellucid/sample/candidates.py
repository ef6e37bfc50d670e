"""What the steps of a chain hand on: the tokens still possible, and their logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Candidates:
    """``ids`` (n,) ascending, None for the whole vocabulary; ``logits`` (n,) float64 or float32."""

    ids: NDArray[np.int64] | None
    logits: NDArray[np.floating[Any]]

    def keep(self, chosen: NDArray[np.int64]) -> Candidates:
        """Only the candidates at these places; their order (ascending ids) is kept."""
        chosen = np.sort(chosen)
        return Candidates(chosen if self.ids is None else self.ids[chosen], self.logits[chosen])

    def id_at(self, place: int) -> int:
        """The token at a place."""
        return place if self.ids is None else int(self.ids[place])

    def probabilities(self) -> NDArray[np.float64]:
        """softmax of the logits, in float64."""
        logits = self.logits.astype(np.float64)
        weights = np.exp(logits - logits.max())
        return np.asarray(weights / weights.sum(), np.float64)


class Step(Protocol):
    """A step of the chain."""

    def apply(self, candidates: Candidates) -> Candidates:
        """The candidates after this step; never none."""
        ...
